/** Parts of a page that are shown and hidden: `show({ left: "chat:lobby", right: "" })`. */
import { StrictMode } from "react";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";
import { client, useChannel, useConnection } from "docs/react";

function Part({ name, channel }) {
  const items = useChannel(channel);
  return <ul aria-label={name}>{items.map((text, n) => <li key={n}>{text}</li>)}</ul>;
}

function Page({ parts }) {
  const shown = Object.entries(parts).filter(([, channel]) => channel);
  return (
    <>
      <p role="status">{useConnection().state}</p>
      {shown.map(([name, channel]) => <Part key={name} name={name} channel={channel} />)}
    </>
  );
}

const root = createRoot(document.body.appendChild(document.createElement("div")));
window.client = client;
window.show = (parts) => flushSync(() => root.render(<StrictMode><Page parts={parts} /></StrictMode>));
show({});
