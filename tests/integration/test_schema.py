"""`backchannel schema` as people run it; what it writes, read by the official tools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

SHOP = """
from __future__ import annotations
import datetime, enum, uuid
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import BaseModel, Field
from backchannel import Hub, Listener, event

hub = Hub()

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Item(Struct):
    "A thing: */ to buy."
    id: uuid.UUID
    name: Annotated[str, Meta(max_length=20, description="as on the label")]
    colour: Colour = Colour.RED
    sizes: tuple[int, int] = (1, 2)
    tags: list[Literal["new", "old"]] = []
    stock: dict[str, int] = {}
    since: datetime.datetime | None = None
    parts: list[Item] = []
    note: str | UnsetType = UNSET

class Order(Struct, tag="order", tag_field="type"):
    item: str
    count: int = 1

class Ask(TypedDict):
    item: str
    depth: NotRequired[int]

class Paid(BaseModel):
    type: Literal["paid"] = "paid"
    amount: float
    who: "str | None" = None

class Sold(BaseModel):
    type: Literal["sold"] = "sold"
    odd_name: int = Field(alias="odd-name")

@hub.endpoint("/ws/shop/{room}/{number:int}", channel="shop:{room}", tag="kind")
class Shop(Listener):
    "A shop."
    sends = Item | Paid | Sold | str | bytes | list[Item]

    def on_message(self, ws, message: Order | list[int]) -> None: ...

    @event("find")
    async def find(self, ws, message: Ask) -> Item | None:
        "Look something up."

    @event("pay")
    def pay(self, ws, message: Annotated[Paid | Sold, Field(discriminator="type")]) -> float: ...

    @event("odd name/1")
    def odd(self, ws) -> dict: ...

    @event("sum")
    def sum(self, ws, message: list[int]) -> int: ...

@hub.endpoint("/ws/echo")
def echo(ws, message: str | bytes) -> str | bytes: ...

@hub.endpoint("/ws/files/{rest:path}")
def anything(ws, message): ...
"""


@pytest.fixture
def schema(tmp_path):
    """Run the command in a folder of its own: ``schema("shop.py", "--check", …)``."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "backchannel", "schema", *map(str, arguments)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    (tmp_path / "shop.py").write_text(SHOP)
    return run


@pytest.fixture
def official(npm):
    """Tell what the AsyncAPI specification's own JSON Schema finds wrong with a document."""
    file = npm.folder / "@asyncapi/specs/schemas/3.0.0-without-$id.json"
    validator = Draft7Validator(json.loads(file.read_text()))
    return lambda document: [
        f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)
    ]


@pytest.fixture
def tsc(npm, tmp_path):
    """Check TypeScript: ``tsc(file, …)``; returns what it found."""

    def run(*files):
        options = "--noEmit --strict --target es2022 --module esnext --moduleResolution bundler"
        done = npm.run("tsc", "--ignoreConfig", *options.split(), *map(str, files), cwd=tmp_path)
        return done.stdout + done.stderr

    return run


def test_it_prints_asyncapi_that_the_specification_admits(schema, official):
    done = schema("shop.py", "--title", "Shop", "--api-version", "1.2")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert official(document) == []
    assert document["info"] == {"title": "Shop", "version": "1.2"}
    shop = document["channels"]["Shop"]
    assert shop["address"] == "/ws/shop/{room}/{number}"
    assert list(shop["parameters"]) == ["room", "number"]
    find = document["operations"]["Shop.event.find"]
    assert find["description"] == "Look something up."
    assert find["messages"] == [{"$ref": "#/channels/Shop/messages/find"}]
    assert find["reply"]["messages"] == [{"$ref": "#/channels/Shop/messages/Item"}]
    document["asyncapi"] = 3  # so the official schema does find something
    assert official(document)


def test_every_message_fits_its_payload_and_no_other_does(schema):
    document = json.loads(schema("shop.py").stdout)
    messages = document["channels"]["Shop"]["messages"]

    def admits(name, value):
        payload = {**messages[name]["payload"], "components": document["components"]}
        return Draft7Validator(payload).is_valid(value)

    assert admits("find", {"kind": "find", "item": "x"})
    assert not admits("find", {"kind": "found", "item": "x"})
    assert not admits("find", {"kind": "find"})
    assert admits("Order", {"type": "order", "item": "x"})
    assert not admits("Order", {"type": "order", "item": 1})
    assert admits("odd_name_1", {"kind": "odd name/1"})
    assert not admits("odd_name_1", {})


USE = """
import type { Anything, Echo, Item, Shop } from "./shop";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false;
const same = <A, B>(_: Same<A, B>): void => {};

same<Parameters<Shop["events"]["find"]>[0], { item: string; depth?: number }>(null!);
export const ask: Shop["sends"] = { kind: "find", item: "x" };
export const order: Shop["sends"] = { type: "order", item: "x" };
export const odd: Shop["sends"] = { kind: "odd name/1" };
// @ts-expect-error - no such type of message
export const no: Shop["sends"] = { kind: "nothing" };
// @ts-expect-error - a field is missing
export const missing: Shop["sends"] = { kind: "find" };
// @ts-expect-error - a field is of another type
export const wrong: Shop["sends"] = { type: "order", item: 1 };
export const item: Item = {
  id: "1", name: "x", colour: "red", sizes: [1, 2], tags: ["new"], stock: { a: 1 }, since: null, parts: [],
};
// @ts-expect-error - a colour that there is not
export const green: Item["colour"] = "green";
export const answer: ReturnType<Shop["events"]["find"]> = null;
export const paid: number = (null! as Shop).events.pay({ type: "paid", amount: 1 });
export const sold: number = (null! as Shop).events.pay({ type: "sold", "odd-name": 1 });
export const sum: number = (null! as Shop).events.sum([1, 2]);
export const text: Echo["sends"] = "text";
// @ts-expect-error - neither text nor bytes
export const number: Echo["sends"] = 1;
export const any: Anything["sends"] = 1;
export function heard(message: Shop["channels"]["shop:1"]): number {
  if (typeof message === "string") return message.length;
  if (message instanceof Uint8Array) return message.byteLength;
  if (Array.isArray(message)) return message.length;
  if (!("type" in message)) return message.sizes[1];
  return message.type === "paid" ? message.amount : message.odd_name;
}
"""


def test_its_typescript_says_the_same(schema, tsc, tmp_path):
    done = schema("shop.py", "--typescript", "shop.d.ts")
    assert done.stdout == "shop.d.ts\n", done.stderr
    # The comparison of types must itself be one: without a type error where they differ, it is none.
    (tmp_path / "use.ts").write_text(USE.replace("(null!)", "(true)"))
    assert tsc("use.ts") == ""
    (tmp_path / "use.ts").write_text(USE.replace("(null!)", "(true)").replace("depth?: number", ""))
    assert "use.ts" in tsc("use.ts")


CLIENT = """
import { connect } from "./client";
import type { Chat } from "./chat";

const chat = connect<Chat>("/ws/chat/room");
chat.on("message", (message) => {
  if (message.type === "welcome") console.log(message.people[message.you]);
});
chat.channel("chat:room").on("publication", ({ data }) => {
  if (data.type === "said") console.log(data.by, data.text);
});
chat.send({ type: "say", text: "hi" });
// @ts-expect-error - no text
chat.send({ type: "say" });
export const told: Promise<null> = chat.call("whisper", { to: "x", text: "y" });
// @ts-expect-error - no such event
void chat.call("shout", "x");
"""


def test_its_types_are_the_message_maps_of_the_client(tsc, tmp_path):
    client = ROOT / "src/backchannel/static/client.d.ts"
    (tmp_path / "client.d.ts").write_text(client.read_text())
    (tmp_path / "chat.d.ts").write_text((EXAMPLES / "chat.d.ts").read_text())
    (tmp_path / "page.ts").write_text(CLIENT)
    assert tsc("page.ts") == ""


# ── the example ───────────────────────────────────────────────────────────────────────────────


def test_the_examples_files_are_what_its_listener_says(schema, tmp_path):
    done = schema(EXAMPLES / "chat.py", "--asyncapi", "a.json", "--typescript", "t.d.ts")
    assert done.returncode == 0, done.stderr
    again = "cd examples && backchannel schema chat.py --asyncapi chat.asyncapi.json --typescript chat.d.ts"
    assert (tmp_path / "a.json").read_text() == (EXAMPLES / "chat.asyncapi.json").read_text(), again
    assert (tmp_path / "t.d.ts").read_text() == (EXAMPLES / "chat.d.ts").read_text(), again


def test_the_examples_document_is_admitted(official):
    assert official(json.loads((EXAMPLES / "chat.asyncapi.json").read_text())) == []


def page_code():
    """Return the page's code for what it gets, and what it sends, as TypeScript that is checked."""
    page = (EXAMPLES / "chat.html").read_text()
    handlers = re.search(r"^const receive = (\{.*?^\});$", page, re.DOTALL | re.MULTILINE)[1]
    sent = re.findall(r"\{ type: \"\w+\"[^{}]*\}", page.replace("to: this.to", "to: String()"))
    assert len(sent) == 3
    sent = "\n".join(f"export const sent{n}: Chat['sends'] = {one};" for n, one in enumerate(sent))
    return f"""
import type {{ Chat }} from "./chat";
type Got = Chat["messages"];
type Names = Map<string, string>;
type Room = {{ people: Names; known: Names; typing: Map<string, any>; [name: string]: any }};
type Handlers = {{ [T in Got["type"]]: (room: Room, message: Extract<Got, {{ type: T }}>) => void }};
declare function make(...all: any[]): any;
declare function person(name: string | undefined): any;
export const receive: Handlers = {handlers};
const text = "", key = "";
{sent}
"""


def test_the_examples_page_and_its_server_agree(tsc, tmp_path):
    """What the page reads is sent, all that is sent is read, and what it sends is taken."""
    types = (EXAMPLES / "chat.d.ts").read_text()
    code = page_code()
    wrongs = {
        "reads": ("delivered: boolean", "arrived: boolean"),  # a field that it reads is renamed
        "type": ("name: string", "name: number"),  # …or is of another type
        "unknown": ('type: "left"', 'type: "gone"'),  # a type of message that it does not know
        "sends": ("interface Whisper {", "interface Whisper { more: 1;"),  # a field it sends not
    }
    for name, (right, wrong) in {"right": ("", ""), **wrongs}.items():
        assert right in types
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat.d.ts").write_text(types.replace(right, wrong))
        (tmp_path / name / "page.ts").write_text(code)
    # All at once: it takes its time to start.
    said = tsc(*(f"{name}/page.ts" for name in ("right", *wrongs)))
    assert set(re.findall(r"^(\w+)/page\.ts\(", said, re.MULTILINE)) == wrongs.keys(), said


# ── --check ───────────────────────────────────────────────────────────────────────────────────


def test_check_tells_what_breaks_and_for_whom_and_fails(schema, tmp_path):
    assert schema("shop.py", "--asyncapi", "shop.json").returncode == 0
    done = schema("shop.py", "--check", "shop.json")
    assert (done.returncode, done.stdout) == (0, "shop.json is up to date.\n")

    (tmp_path / "shop.py").write_text(
        SHOP.replace("count: int = 1", "count: int\n    by: str = ''")
    )
    done = schema("shop.py", "--check", "shop.json")
    assert done.returncode == 1
    where = "/ws/shop/{room}/{number}: order"
    assert done.stdout.splitlines() == [
        f"BREAKS  {where}.count: is always there now (breaks clients that send it)",
        f"ok      {where}.by: may be sent too",
    ]
    assert "1 change breaks clients that were made for shop.json" in done.stderr
    assert "backchannel schema shop.py --asyncapi shop.json" in done.stderr

    (tmp_path / "shop.py").write_text(
        SHOP.replace("count: int = 1", "count: int = 1\n    by: str = ''")
    )
    done = schema("shop.py", "--check", "shop.json")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"ok      {where}.by: may be sent too"
    assert "Write the file anew: backchannel schema shop.py --asyncapi shop.json" in done.stdout

    (tmp_path / "shop.py").write_text(SHOP.replace("Look something up", "Find it"))
    done = schema("shop.py", "--check", "shop.json")
    assert done.returncode == 0
    assert done.stdout.startswith("Only titles and descriptions have changed.")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file old.json: write it first, with --asyncapi"),
        ("{", "old.json is no JSON (Expecting"),
        ("[]", "old.json is no AsyncAPI 3 document: write it first"),
        ('{"asyncapi": "2.6.0"}', "old.json is no AsyncAPI 3 document"),
        ('{"asyncapi": "3.0.0"}', "old.json is no document that this command wrote (KeyError"),
        (
            '{"asyncapi": "3.0.0", "channels": {"a": {"$ref": "#/b"}}}',
            "old.json is no document that this command wrote (#/b leads nowhere): write it anew",
        ),
    ],
)
def test_check_against_what_is_no_such_document(schema, tmp_path, content, problem):
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    done = schema("shop.py", "--check", "old.json")
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["shop.py", "--check", "a", "--asyncapi", "b"], 2, "--check only compares"),
        (
            ["shop.py", "--asyncapi", "no/such/folder"],
            1,
            "no/such/folder can't be written: No such",
        ),
        (["nothing.py"], 1, "there is no file nothing.py"),
        (["bare.py"], 1, "bare.py:hub has no endpoint: write @hub.endpoint(…) above a listener"),
        (["odd.py"], 1, "the return annotation: <class 'odd.Odd'>, and Odd has no JSON form"),
    ],
)
def test_what_can_not_be_done_is_told(schema, tmp_path, arguments, code, problem):
    bare = "from backchannel import Hub\nhub = Hub()\n"
    (tmp_path / "bare.py").write_text(bare)
    (tmp_path / "odd.py").write_text(
        bare + "class Odd: ...\n@hub.endpoint('/ws')\ndef odd(ws, message: str) -> Odd: ...\n"
    )
    done = schema(*arguments)
    assert done.returncode == code
    assert problem in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
