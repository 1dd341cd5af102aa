"""URL templates: which of them a path belongs to, and what is said of those that are none."""

import time
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backchannel.errors import TemplateError
from backchannel.template import NamePattern, Router, Template, near_misses

ID = "0189d5d2-7a3c-4c5e-9f00-3c1d2e4f5a6b"


def match(path, *templates):
    """Return the text of the template a path belongs to, with its variables; None without one."""
    router = Router()
    for template in templates:
        router.add(Template(template), template)
    return router.match(split(path))


def split(path):
    return path[1:].split("/") if path != "/" else []


# ── one template ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/", "/", {}),
        ("/ws/echo", "/ws/echo", {}),
        ("/ws/echo/", "/ws/echo/", {}),
        ("/ws/chat/{channel}", "/ws/chat/cars", {"channel": "cars"}),
        ("/{a}/{b}", "/x/y", {"a": "x", "b": "y"}),
        ("/{name:str}", "/x", {"name": "x"}),
        ("/{n:int}", "/0", {"n": 0}),
        ("/{n:int}", "/-12", {"n": -12}),
        ("/{n:int}", "/007", {"n": 7}),
        ("/{id:uuid}", f"/{ID}", {"id": UUID(ID)}),
        ("/{id:uuid}", f"/{ID.upper()}", {"id": UUID(ID)}),
        ("/files/{rest:path}", "/files/a", {"rest": "a"}),
        ("/files/{rest:path}", "/files/a/b/c", {"rest": "a/b/c"}),
        ("/files/{rest:path}", "/files/a/", {"rest": "a/"}),
        ("/{rest:path}", "/a//b", {"rest": "a//b"}),
        ("/größe/{x}", "/größe/ü", {"x": "ü"}),
        ("/a.b/{x}", "/a.b/c.d", {"x": "c.d"}),
        ("/{x}", "/{x}", {"x": "{x}"}),
    ],
)
def test_a_path_that_fits_gives_the_variables_converted(template, path, values):
    assert match(path, template) == (template, values)


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/", "/x"),
        ("/ws/echo", "/ws/echo/"),
        ("/ws/echo/", "/ws/echo"),
        ("/ws/echo", "/WS/echo"),
        ("/ws/echo", "/ws"),
        ("/ws/echo", "/ws/echo/more"),
        ("/{x}", "/"),
        ("/a/{x}", "/a/"),
        ("/a/{x}", "/a/b/c"),
        ("/{n:int}", "/1.5"),
        ("/{n:int}", "/+1"),
        ("/{n:int}", "/1_000"),
        ("/{n:int}", "/ 1"),
        ("/{n:int}", "/1\n"),
        ("/{n:int}", "/٣"),
        ("/{n:int}", "/" + "9" * 20),
        ("/{n:int}", "/-"),
        ("/{id:uuid}", "/" + ID.replace("-", "")),
        ("/{id:uuid}", "/{" + ID + "}"),
        ("/{id:uuid}", f"/{ID}0"),
        ("/files/{rest:path}", "/files"),
        ("/files/{rest:path}", "/files/"),
    ],
)
def test_a_path_that_does_not_fit_belongs_to_nothing(template, path):
    assert match(path, template) is None


def test_a_variable_is_never_empty_but_an_exact_segment_may_end_the_path():
    assert match("/a/", "/a/{x}", "/a/") == ("/a/", {})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", ["start with", "/ws/chat/{channel}"]),
        ("ws/echo", ["'ws/echo'", "start with"]),
        ("{channel}", ["start with"]),
        (None, ["None", "start with"]),
        (b"/ws", ["start with"]),
        ("/ws//echo", ["'/ws//echo'", "empty segment"]),
        ("//", ["empty segment"]),
        ("/ws/./echo", ["'.'", "no URL keeps"]),
        ("/ws/..", ["'..'", "no URL keeps"]),
        ("/ws?x=1", ["'?'", "without query"]),
        ("/ws#x", ["'#'", "fragment"]),
        ("/caf%C3%A9", ["'%C3'", "percent-encoded"]),
        ("/{a}/{a}", ["'a'", "twice"]),
        ("/{a:int}/{a:uuid}", ["'a'", "twice"]),
        ("/{rest:path}/x", ["{rest:path}", "last"]),
        ("/{rest:path}/", ["{rest:path}", "last"]),
        ("/room-{n}", ["'room-{n}'", "all text or one variable", "{name:int}"]),
        ("/{a}{b}", ["'{a}{b}'", "one variable"]),
        ("/{}", ["'{}'", "{name}"]),
        ("/{1}", ["'{1}'"]),
        ("/{a b}", ["'{a b}'"]),
        ("/{größe}", ["'{größe}'"]),
        ("/{a", ["'{a'"]),
        ("/a}", ["'a}'"]),
        ("/{{a}}", ["'{{a}}'"]),
        ("/{a:float}", ["'float'", "{a:float}", "int, uuid, str, path"]),
        ("/{a:}", ["''", "known are"]),
        ("/{a:INT}", ["'INT'", "known are"]),
        ("/x/:id", ["':id' would be taken literally", "written {id}"]),
        ("/x/<id>", ["'<id>' would be taken literally", "written {id}"]),
        ("/x/<int:id>/y", ["'<int:id>'", "written {id}"]),
        ("/x/*", ["'*' would be taken literally", "{rest:path}"]),
    ],
)
def test_a_malformed_template_is_refused_with_its_place_and_how_to_write_it(template, words):
    with pytest.raises(TemplateError) as caught:
        Template(template)
    for word in [repr(template), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text", ["/100%", "/a%zz", "/~user", "/a:b", "/@me", "/a b", "/a*", "/:", "/a<b>"]
)
def test_text_that_a_path_may_have_may_be_in_a_template(text):
    assert match(text, text) == (text, {})


def test_a_templates_variables_are_listed_from_left_to_right():
    assert Template("/{b}/x/{a:int}/{c:path}").variables == ("b", "a", "c")


# ── several ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "winner"),
    [
        ("/room/list", "/room/list"),
        ("/room/7", "/room/{n:int}"),
        (f"/room/{ID}", "/room/{id:uuid}"),
        ("/room/cars", "/room/{name}"),
        ("/room/cars/1", "/room/{rest:path}"),
        ("/room/7/1", "/room/{rest:path}"),
        ("/room/list/1", "/room/{rest:path}"),
        ("/hall/7", "/{any}/{n:int}"),
        ("/hall/x", "/{rest:path}"),
    ],
)
def test_exact_text_wins_over_int_and_uuid_these_over_a_variable_that_over_path(path, winner):
    templates = [
        "/{rest:path}", "/{any}/{n:int}", "/room/{rest:path}", "/room/{name}", "/room/{id:uuid}",
        "/room/{n:int}", "/room/list",
    ]  # fmt: skip
    assert match(path, *templates)[0] == winner
    assert match(path, *reversed(templates))[0] == winner


def test_the_leftmost_segment_decides():
    assert match("/a/b", "/{x}/b", "/a/{y}") == ("/a/{y}", {"y": "b"})


def test_a_branch_that_leads_nowhere_is_left_again():
    assert match("/a/7/z", "/a/{n:int}/x", "/a/{s}/y", "/{t}/{n:int}/z") == (
        "/{t}/{n:int}/z",
        {"t": "a", "n": 7},
    )


def test_a_text_that_looks_like_a_kind_is_a_text():
    assert match("/int/5", "/int/{n:int}", "/{int}/{str}")[0] == "/int/{n:int}"


KINDS = ["", ":str", ":int", ":uuid"]
SEGMENTS = st.sampled_from(["a", "b", "7", "int"])


@st.composite
def template_texts(draw):
    parts = draw(st.lists(SEGMENTS | st.sampled_from([f"{{}}{k}" for k in KINDS]), max_size=4))
    parts = [
        f"{{v{i}{part[2:]}}}" if part.startswith("{}") else part for i, part in enumerate(parts)
    ]
    end = draw(st.sampled_from(["", "", "/", "path"]))
    if end == "path":
        parts.append("{tail:path}")
    elif end == "/" and parts:
        parts.append("")
    return "/" + "/".join(parts)


def kind_of(part):
    """Return an exact segment's text as it is and a variable's kind in braces."""
    if not part.startswith("{"):
        return part
    return "{" + (part[1:-1].partition(":")[2] or "str")


def naive(text, segments):
    """Match one template as the documentation says it; return its rank and variables."""
    parts, rank, values = split(text), [], {}
    for index, part in enumerate(parts):
        kind = kind_of(part)
        name = part[1:-1].partition(":")[0]
        rest = segments[index:]
        if not rest:
            return None
        if kind == "{path":
            values[name] = "/".join(rest)
            rank.append(3)
            return (rank, values) if values[name] else None
        if kind == "{int":
            if not (rest[0].lstrip("-").isdigit() and rest[0].count("-") <= 1):
                return None
            values[name] = int(rest[0])
        elif kind == "{uuid":
            if len(rest[0]) != 36:
                return None
            values[name] = UUID(rest[0])
        elif kind == "{str":
            if not rest[0]:
                return None
            values[name] = rest[0]
        elif rest[0] != part:
            return None
        rank.append({"{int": 1, "{uuid": 1, "{str": 2}.get(kind, 0))
    return (rank, values) if len(parts) == len(segments) else None


@settings(max_examples=400)
@given(
    st.lists(template_texts(), max_size=14),
    st.lists(st.sampled_from(["a", "b", "7", "-7", "int", ID, "zz", ""]), max_size=5),
)
@example(["/a/{v1:int}", "/{v0}/{tail:path}", "/{tail:path}"], ["a", "b"])
def test_the_router_answers_as_the_documented_precedence_says(texts, segments):
    """The least rank wins, compared from left to right: what a reader of the docs would do."""
    router, kept = Router(), {}
    for text in texts:
        shape = tuple(kind_of(part) for part in split(text))
        if shape in kept:
            with pytest.raises(TemplateError):
                router.add(Template(text), text)
        else:
            kept[shape] = text
            router.add(Template(text), text)
    fits = [
        (found[0], text, found[1]) for text in kept.values() if (found := naive(text, segments))
    ]
    wanted = min(fits)[1:] if fits else None
    assert router.match(segments) == wanted
    assert list(router) == list(kept.values())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/ws/{a}", "/ws/{b}"),
        ("/ws/{a}", "/ws/{b:str}"),
        ("/{a:int}/x", "/{b:int}/x"),
        ("/{a:path}", "/{b:path}"),
    ],
)
def test_two_templates_for_the_same_urls_are_refused_and_both_are_named(first, second):
    router = Router()
    router.add(Template(first), 1)
    with pytest.raises(TemplateError, match="match the same URLs") as caught:
        router.add(Template(second), 2)
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)
    assert router.get(second) is None
    assert list(router) == [1]


def test_a_duplicate_is_refused_and_the_first_one_stays():
    router = Router()
    router.add(Template("/ws/{a}"), 1)
    with pytest.raises(TemplateError, match=r"'/ws/\{a\}' is registered already"):
        router.add(Template("/ws/{a}"), 2)
    assert router.get("/ws/{a}") == 1
    assert router.match(["ws", "x"]) == (1, {"a": "x"})


def test_a_falsy_value_is_found_too():
    router = Router()
    router.add(Template("/"), 0)
    router.add(Template("/x"), None)
    assert router.match([]) == (0, {})
    assert router.match(["x"]) == (None, {})


def test_a_long_path_is_answered_at_once():
    """No path costs more than the templates are deep: not its length, not its choices."""
    texts = [
        "/" + "/".join(f"{{v{i}}}" if mask >> i & 1 else "a" for i in range(8))
        for mask in range(256)
    ]
    router = Router()
    for text in texts:
        router.add(Template(text), text)
    began = time.process_time()
    assert router.match(["a"] * 100_000) is None
    assert router.match(["a"] * 7 + ["z"])[0] == "/a/a/a/a/a/a/a/{v7}"
    assert time.process_time() - began < 0.5


# ── near misses ───────────────────────────────────────────────────────────────────────────────


def test_near_misses_are_the_templates_most_alike():
    templates = ["/ws/chat/{channel}", "/ws/echo", "/admin/live", "/ws/chat/{channel}/old"]
    assert near_misses("/ws/ecco", templates)[0] == "/ws/echo"
    assert near_misses("/ws/chat/cars", templates)[0] == "/ws/chat/{channel}"
    assert len(near_misses("/ws/chat/cars", templates)) == 3


def test_where_nothing_is_alike_some_templates_are_named_and_none_where_there_are_none():
    assert near_misses("/" + "z" * 30, iter(["/ws/echo", "/b", "/c", "/d"])) == [
        "/ws/echo",
        "/b",
        "/c",
    ]
    assert near_misses("/zzz", []) == []


# ── channel patterns ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "values", "name"),
    [
        ("{channel}", {"channel": "cars", "other": 1}, "cars"),
        ("support:{room}", {"room": "a"}, "support:a"),
        ("{a}-{b}", {"a": "x", "b": 7}, "x-7"),
        ("{id}", {"id": UUID(ID)}, ID),
        ("lobby", {"room": "a"}, "lobby"),
        ("{{{room}}}", {"room": "a"}, "{a}"),
        ("{a}{a}", {"a": "x"}, "xx"),
        ("{a}", {"a": "{b}"}, "{b}"),
    ],
)
def test_a_channels_name_is_made_of_the_urls_variables(pattern, values, name):
    made = NamePattern(pattern, values)
    assert made.fill(values) == name
    assert made.matches(name)


@given(st.data())
def test_a_pattern_matches_every_name_that_it_makes(data):
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="*<")
    text = st.text(characters, max_size=4)
    literals = data.draw(st.lists(text, min_size=1, max_size=3))
    variables = [f"v{i}" for i in range(len(literals) - 1)]
    written = [part.replace("{", "{{").replace("}", "}}") for part in literals]
    pattern = "".join(
        part + (f"{{{name}}}" if name else "")
        for part, name in zip(written, [*variables, ""], strict=True)
    )
    made = NamePattern(pattern, variables)
    values = {name: data.draw(text.filter(bool)) for name in variables}
    name = made.fill(values)
    assert made.matches(name)
    assert made.literal_length == sum(map(len, literals))
    assert made.casefolded().matches(name.casefold())


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("support:{room}", ["support:", "Support:a", "xsupport:a", "a"]),
        ("{a}-x", ["-x", "a-xx", "a"]),
        ("a.c", ["abc", "a.c "]),
        ("{room}", [""]),
    ],
)
def test_a_pattern_matches_no_name_that_it_can_not_make(pattern, names):
    made = NamePattern(pattern, ["room", "a"])
    for name in names:
        assert not made.matches(name)


def test_a_casefolded_pattern_makes_and_matches_names_without_case_and_keeps_its_variables():
    made = NamePattern("Straße:{Room}:{{X}}", ["Room"]).casefolded()
    assert made.fill({"Room": "a"}) == "strasse:a:{x}"
    assert made.matches("strasse:a:{x}")
    assert not made.matches("Straße:a:{X}")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{room}", ["{room}", "no variable of the URL template", "channel, n"]),
        ("x:{}", ["{}", "no variable"]),
        ("x:{0}", ["{0}", "no variable"]),
        ("{n.real}", ["{n.real}", "no variable"]),
        ("{n[0]}", ["{n[0]}", "no variable"]),
        ("{n:int}", ["{n}", "name alone"]),
        ("{n!r}", ["{n}", "name alone"]),
        ("{n", ["malformed", "'}'"]),
        ("n}", ["malformed", "'}'"]),
    ],
)
def test_a_malformed_pattern_is_refused_with_what_is_wrong_in_it(pattern, words):
    with pytest.raises(TemplateError) as caught:
        NamePattern(pattern, ["channel", "n"])
    for word in [f"channel={pattern!r}", *words]:
        assert word in str(caught.value)


def test_a_pattern_with_variables_for_a_template_without_says_that_there_are_none():
    with pytest.raises(TemplateError, match="which has none"):
        NamePattern("{channel}", [])
