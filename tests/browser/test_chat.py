"""People use the example chat's page in a real browser, each in a profile of their own.

``BACKCHANNEL_PICTURE=docs/images/chat.png`` makes the README's picture anew from the first test.
"""

from __future__ import annotations

import os
import re

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Person:
    """Someone at the page: what they see, and what they do."""

    def __init__(self, page):
        self.page = page
        self.log = page.get_by_role("log")
        self.state = page.get_by_role("status")
        self.people = page.get_by_role("list", name="People here").get_by_role("listitem")
        self.typing = page.locator(".typing:visible")
        self.unsent = page.locator(".unsent:visible .bubble")
        self.input = page.locator(".composer:visible input")
        self.problems = []  # errors in the page, and addresses it should not want
        self.frames = []  # whatever came by WebSocket, shown or not
        page.on(
            "console", lambda m: m.type in {"error", "warning"} and self.problems.append(m.text)
        )
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._check_address)
        page.on("websocket", lambda socket: socket.on("framereceived", self._keep_frame))

    def _check_address(self, request):
        if not re.match(r"http://localhost:\d+/(backchannel/client\.js)?$|data:", request.url):
            self.problems.append(f"wants {request.url}")

    def _keep_frame(self, frame):
        self.frames.append(frame)

    def forgive(self, error):
        """Forget a network error: a browser reports each, which no page can keep it from."""
        self.problems = [problem for problem in self.problems if error not in problem]

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def tab(self, channel):
        return self.page.get_by_role("navigation").get_by_role(
            "button", name=re.compile(f"^#{channel}")
        )

    async def knock(self, name, channel="cars"):
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_label("Channel", exact=True).fill(channel)
        await self.button("Join").click()

    async def add_channel(self, channel):
        box = self.page.get_by_label("Join another channel")
        await box.fill(channel)
        await box.press("Enter")
        await expect(self.state).to_have_text("Connected")

    async def say(self, text):
        await self.input.fill(text)
        await self.input.press("Enter")

    async def shown(self):
        """Return what people said, as far as it is on the screen and not only on its way."""
        return await self.log.locator(":scope > .message .bubble").all_text_contents()

    async def sees(self, text):
        await expect(self.log).to_contain_text(text)

    async def sees_people(self, *names):
        await expect(self.people).to_have_text(
            [re.compile(re.escape(name) + "$") for name in names]
        )


@pytest_asyncio.fixture(loop_scope="session")
async def server(make_app):
    server = make_app("chat.py")
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def come(server, new_context):
    """Bring people to the page; at the end nothing may have gone wrong in anyone's."""
    people = []

    async def bring(name=None, channel="cars", **options):
        person = Person(await (await new_context(**options)).new_page())
        people.append(person)
        await person.page.goto(server.url)
        if name is not None:
            await person.knock(name, channel)
            await expect(person.state).to_have_text("Connected")
        return person

    yield bring
    for person in people:
        await person.page.context.close()
    assert [problem for person in people for problem in person.problems] == []


async def test_three_people_talk_whisper_and_leave(come):
    ana = await come("Ana", viewport={"width": 1040, "height": 690})
    ben, cleo = await come("Ben"), await come("Cleo")
    await ana.sees_people("Ana · you", "Ben", "Cleo")
    await ben.sees_people("Ben · you", "Ana", "Cleo")
    await cleo.sees_people("Cleo · you", "Ana", "Ben")

    await ana.say("Morning! Anyone driving to the lake on Saturday?")
    for one in (ana, ben, cleo):
        await one.sees("driving to the lake")
    await ben.input.press_sequentially("I am")
    await expect(ana.typing).to_have_text("Ben is typing…")
    await expect(cleo.typing).to_have_text("Ben is typing…")
    await expect(ben.typing).to_be_empty()
    await ben.say("I am, and I have two seats left.")
    await ana.sees("two seats left")
    await expect(ana.typing).to_be_empty()
    await cleo.say("Count me in. I'll bring the coffee.")
    await ana.sees("coffee")

    await ben.button("Whisper to Ana").click()
    await expect(ben.input).to_be_focused()
    await ben.say("Can we fetch Cleo's birthday cake on the way?")
    await ben.sees("You whisper to Ana")
    await ana.sees("Ben whispers to youCan we fetch Cleo's birthday cake")
    await ana.button("Whisper to Ben").click()
    await ana.say("Of course. Not a word to her!")
    await ben.sees("Ana whispers to youOf course.")
    if picture := os.environ.get("BACKCHANNEL_PICTURE"):
        await ana.page.screenshot(path=picture)

    # Cleo saw none of it. What she sees next was sent later by the same two.
    await ana.input.press("Escape")
    await ana.say("See you at nine.")
    await ben.input.press("Escape")
    await ben.say("At nine.")
    await cleo.sees("See you at nine.")
    await cleo.sees("At nine.")
    await expect(cleo.log).not_to_contain_text("whisper")
    assert not [frame for frame in cleo.frames if "cake" in frame or "whisper" in frame]

    await ana.button("Whisper to Ben").click()
    await ben.page.context.close()
    await ana.sees_people("Ana · you", "Cleo")
    await cleo.sees_people("Cleo · you", "Ana")
    await ana.sees("Ben left")
    await ana.say("Are you there?")  # still to Ben, not suddenly to all
    await ana.sees("Not delivered: Ben is not here any moreAre you there?")
    await cleo.say("Bye")
    await ana.sees("Bye")
    assert not [frame for frame in cleo.frames if "Are you there" in frame]


async def test_a_page_that_is_loaded_anew_knows_the_name_and_another_window_does_not(come, server):
    ana = await come("Ana", "boats")
    await ana.page.reload()
    await expect(ana.page.get_by_label("Your name")).to_have_value("Ana")
    await expect(ana.page.get_by_label("Channel", exact=True)).to_have_value("boats")
    await ana.button("Join").click()
    await expect(ana.state).to_have_text("Connected")
    await ana.sees_people("Ana · you")
    await ana.sees("Welcome to #boats, Ana.")
    window = await ana.page.context.new_page()
    await window.goto(server.url)
    await expect(window.get_by_label("Your name")).to_have_value("")
    await expect(window.get_by_label("Channel", exact=True)).to_have_value("cars")


async def test_a_browser_that_lets_pages_keep_nothing_has_the_chat_too(come, server):
    ana = await come()
    await ana.page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('no'); } })"
    )
    await ana.page.goto(server.url)
    await ana.knock("Ana")
    await ana.sees("Welcome to #cars, Ana.")


async def test_one_page_is_in_several_channels(come):
    ana, ben = await come("Ana"), await come("Ben")
    await ana.add_channel(" #Music ")
    await expect(ana.page).to_have_title("#music · Backchannel chat")
    await ana.sees_people("Ana · you")
    await ben.say("Anyone?")
    await expect(ana.tab("cars")).to_have_text("#cars1")
    await expect(ana.page).to_have_title("(1) #music · Backchannel chat")
    await expect(ana.log).not_to_contain_text("Anyone?")
    await ana.say("la la")
    await ana.tab("cars").click()
    await expect(ana.tab("cars")).to_have_text("#cars")
    await ana.sees("Anyone?")
    await ben.add_channel("music")
    await ben.sees_people("Ben · you", "Ana")
    await ben.button("Leave cars").click()
    await ana.sees_people("Ana · you")
    await ana.tab("music").click()
    await ana.sees_people("Ana · you", "Ben")
    await ben.button("Leave music").click()
    await expect(ben.button("Join")).to_be_visible()
    await ana.sees_people("Ana · you")


async def test_the_page_says_when_the_server_is_gone_and_comes_back_with_it(come, server):
    """Without a broker a restart begins anew, and the page says so; what was written is sent."""
    ana, ben = await come("Ana"), await come("Ben")
    await server.stop()
    await expect(ana.state).to_have_text(re.compile(r"Offline, back in \d+ s|Reconnecting"))
    await ana.say("not sent yet")
    await expect(ana.unsent).to_have_text("not sent yet")
    await expect(ana.input).to_have_value("")
    await server.start()
    for one in (ana, ben):
        await expect(one.state).to_have_text("Connected", timeout=20_000)
        await one.sees("Something may be missing here: the server began anew")
    await ana.sees_people("Ana · you", "Ben")
    await ana.sees("not sent yet")
    await expect(ana.unsent).to_have_count(0)
    await ana.say("back again")
    await ben.sees("back again")
    ana.forgive("ERR_CONNECTION_REFUSED")
    ben.forgive("ERR_CONNECTION_REFUSED")


async def test_a_network_that_goes_and_comes_back_loses_and_doubles_nothing(come):
    """Nobody has left meanwhile, and nothing has to be read twice."""
    ana, ben = await come("Ana"), await come("Ben")
    await ana.say("before")
    await ben.sees("before")
    await ana.page.context.set_offline(True)
    await expect(ana.state).to_have_text(re.compile(r"Offline, back in \d+ s|Reconnecting"))
    await ana.say("from the tunnel")
    await ana.button("Whisper to Ben").click()
    await ana.say("and a whisper")
    await ben.say("where are you?")
    await ben.button("Whisper to Ana").click()
    await ben.say("psst")
    await ben.sees("You whisper to Anapsst")
    await expect(ana.unsent).to_have_text(["from the tunnel", "and a whisper"])
    await ana.page.context.set_offline(False)
    await expect(ana.state).to_have_text("Connected")
    await expect(ana.unsent).to_have_count(0)
    await ben.sees("Ana whispers to youand a whisper")
    await ana.sees("Ben whispers to youpsst")
    said = ["before", "where are you?", "from the tunnel"]
    for one, whispers in ((ana, ["psst", "and a whisper"]), (ben, ["psst", "and a whisper"])):
        shown = [text for text in await one.shown() if text not in whispers]
        assert shown == said
        assert sorted(await one.shown()) == sorted([*said, *whispers])
        await expect(one.log).not_to_contain_text("left")
        await expect(one.log).not_to_contain_text("missing")
    await expect(ben.log.get_by_text("Ana joined")).to_have_count(0)
    ana.forgive("ERR_INTERNET_DISCONNECTED")


async def test_a_message_that_will_not_do_is_said_to_be_not_sent(come):
    ana = await come("Ana")
    await ana.page.evaluate("document.querySelector('.composer input').maxLength = 9999")
    await ana.say("x" * 2001)
    await ana.sees("Not sent: ")
    await expect(ana.unsent).to_have_count(0)


@pytest.mark.parametrize("name", ["<img src=x onerror=1>", "<b>B</b> & 'q' \"", "\u202eevil"])
async def test_what_people_write_is_shown_as_text(come, name):
    shown = name.replace("\u202e", "")
    ana, eve = await come("Ana"), await come(name)
    await ana.sees_people("Ana · you", shown)
    await ana.sees(f"{shown} joined")
    await eve.input.press_sequentially("<")
    await expect(ana.typing).to_have_text(f"{shown} is typing…")
    await eve.say("<script>alert(1)</script><img src=x onerror=alert(1)>")
    await ana.sees("<script>alert(1)</script><img src=x onerror=alert(1)>")
    await ana.button(f"Whisper to {shown}").click()
    await ana.say("<i>psst</i>")
    await ana.sees(f"You whisper to {shown}<i>psst</i>")
    await expect(ana.page.locator("#chat :is(img, b, i, script)")).to_have_count(0)


async def test_a_name_that_will_not_do_or_is_taken(come):
    ana = await come("Ana")
    guest = await come()
    await guest.knock("\u200b")
    await expect(guest.page.get_by_role("alert")).to_have_text("Please tell us your name.")
    await expect(guest.page.get_by_label("Your name")).to_be_focused()
    await guest.knock("ana")
    await guest.sees("That name was taken, so you have a number.")
    await guest.sees_people("ana 2 · you", "Ana")
    await ana.sees_people("Ana · you", "ana 2")


async def test_all_of_it_works_from_the_keyboard(come):
    ben = await come("Ben")
    ana = await come()
    await expect(ana.page.get_by_label("Your name")).to_be_focused()
    await ana.page.keyboard.type("Ana")
    await ana.page.keyboard.press("Enter")
    await expect(ana.input).to_be_focused()
    await expect(ana.state).to_have_text("Connected")
    await ana.page.keyboard.type("hello")
    await ana.page.keyboard.press("Enter")
    await ben.sees("hello")
    await ana.button("Whisper to Ben").focus()
    await come("Cleo")  # the list changes, and the focus stays
    await ana.sees_people("Ana · you", "Ben", "Cleo")
    await expect(ana.button("Whisper to Ben")).to_be_focused()
    await ana.page.keyboard.press("Enter")
    await expect(ana.input).to_be_focused()
    await expect(ana.button("Whisper to Ben")).to_have_attribute("aria-pressed", "true")
    await ana.page.keyboard.type("psst")
    await ana.page.keyboard.press("Enter")
    await ben.sees("Ana whispers to youpsst")
    await ana.page.keyboard.press("Escape")
    await expect(ana.button("Whisper to Ben")).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
async def test_nothing_sticks_out_at_any_width(come, width):
    ana = await come("Ana", viewport={"width": width, "height": 640})
    await come("Nebuchadnezzar the 2nd")
    await ana.add_channel("a-channel-with-quite-a-long-name")
    await ana.tab("cars").click()
    await ana.button("Whisper to Nebuchadnezzar the 2nd").click()
    await ana.say("supercalifragilistic" * 20)
    await ana.sees("supercalifragilistic")
    for thing in (ana.input, ana.button("Send"), ana.state, ana.tab("cars")):
        await expect(thing).to_be_in_viewport(ratio=0.99)
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert await ana.page.evaluate(size) == [width, 640]
