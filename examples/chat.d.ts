// Made by `backchannel schema`; change the listener's annotations and make it anew.
// Endpoints are message maps of the client: connect<NAME>("/ws/…").

/** What has become of a whisper of yours. */
export interface Delivery {
  type: "delivery";
  to: string;
  text: string;
  delivered: boolean;
  key?: string;
}

/** Someone came. */
export interface Joined {
  type: "joined";
  id: string;
  name: string;
}

/** Someone went. */
export interface Left {
  type: "left";
  id: string;
}

/** Someone said something to all. */
export interface Said {
  type: "said";
  by: string;
  text: string;
  key?: string;
}

/** Something for everyone in the channel. A page that did not hear whether it was said says it again; by the key all know it as the same. */
export interface Say {
  text: string;
  key?: string;
}

/** Someone is about to say something. */
export interface Typing {
  type: "typing";
  by: string;
}

/** You are in; these people are too. */
export interface Welcome {
  type: "welcome";
  you: string;
  people: Record<string, string>;
}

/** Something for one person in the channel. */
export interface Whisper {
  text: string;
  key?: string;
  to: string;
}

/** Someone said something to you alone. */
export interface Whispered {
  type: "whispered";
  by: string;
  text: string;
  key?: string;
}

/** Everyone in a channel hears what is said there; a whisper is heard by one. At `/ws/chat/{channel}`. */
export interface Chat {
  sends: Say & { type: "say"; } | { type: "typing"; } | Whisper & { type: "whisper"; };
  events: {
    say: (data: Say) => null;
    typing: () => null;
    /** Send to one person of this channel. */
    whisper: (data: Whisper) => null;
  };
  messages: Welcome | Joined | Left | Said | Whispered | Delivery | Typing;
  channels: { [channel: `chat:${string}`]: Welcome | Joined | Left | Said | Whispered | Delivery | Typing };
}
