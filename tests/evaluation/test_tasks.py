"""Questions about long texts: they fit, their answers stand in them, and somebody who reads well scores 1."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from click.testing import CliRunner

from freehold.cli.main import main
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.evaluation.answers import Endpoint
from freehold.evaluation.lookup import lookups
from freehold.evaluation.needle_map import ask_all, check_picture, draw
from freehold.evaluation.tasks import TASKS, make_question
from freehold.training.shapes import RETRIEVAL_WORDS
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama


def words(text: str) -> int:
    return len(text.split())


def solve(prompt: str) -> str:
    """What a perfect reader says."""
    if "three words come most often" in prompt:
        listed = prompt.split("list of words: ")[1].split(".")[0].split(", ")
        return " ".join(word for word, _ in Counter(listed).most_common(3))
    if "which variables" in prompt:
        number = re.search(r"have the value (\d+)", prompt)[1]
        values = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", prompt):
            values[name] = values.get(value, value)
        return " ".join(name for name, value in values.items() if value == number)
    city = re.search(r"what is the magic number of (\w+)", prompt)[1]
    return re.search(rf"The magic number of {city} is (\d+)\.", prompt)[1]


class Reader:
    """Reads well, or not at all."""

    def __init__(self, reads: bool) -> None:
        self.reads = reads

    def count(self, text: str) -> int:
        return words(text)

    def answer(self, prompt: str, max_tokens: int) -> str:
        return f" {solve(prompt)}." if self.reads else " I do not know 12345."


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [260, 700])
def test_a_good_reader_scores_one(task, length: int) -> None:
    for seed in range(5):
        question = make_question(task, length, words, depth=seed / 4, seed=seed)
        assert 0.85 * length < words(question.prompt) <= length or task == "words"
        assert words(question.prompt) <= length
        assert question.score(solve(question.prompt)) == 1.0
        assert question.score("nothing") == 0.0


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_the_needle_lies_where_it_is_said_to(depth: float) -> None:
    prompt = make_question("needle", 900, words, depth=depth).prompt
    body = prompt.split("\nQuestion")[0]
    place = body.index("The magic number") / len(body)
    assert abs(place - depth) < 0.03


def test_questions_are_the_same_again_and_differ_by_seed() -> None:
    assert make_question("needles", 400, words, seed=3) == make_question("needles", 400, words, seed=3)
    assert make_question("needles", 400, words, seed=3) != make_question("needles", 400, words, seed=4)


@pytest.mark.parametrize("task", TASKS)
def test_what_does_not_fit_is_refused(task) -> None:
    with pytest.raises(ArgumentError, match="fit into 12 tokens"):
        make_question(task, 12, words)


def test_a_map_of_all_places(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    asked = {"depths": 3, "questions": 2, "seed": 0, "progress": lambda _, done, of: said.append((done, of))}
    cells = ask_all(Reader(reads=True), TASKS, [300, 500], **asked)
    assert [cell.score for cell in cells] == [1.0] * 16  # 2 tasks with 3 depths and 2 without, at 2 lengths
    assert said[-1] == (32, 32)
    assert all(cell.tokens <= cell.length for cell in cells)
    assert {cell.score for cell in ask_all(Reader(reads=False), TASKS, [300], **asked)} == {0.0}
    pytest.importorskip("matplotlib")
    draw(cells, "needle", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command_asks_a_model(tmp_path: Path) -> None:
    write_tiny_llama(TinyLlamaSpec("asked", num_layers=2, seed=3), tmp_path / "model")
    options = ["--lengths", "400", "--depths", "2", "--questions", "1", "--task", "needle", "--json"]
    done = CliRunner().invoke(main, ["tasks", str(tmp_path / "model"), *options])
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout.splitlines()[-1])["cells"]
    assert [(cell["task"], cell["depth"], cell["score"]) for cell in cells] == [
        ("needle", 0.0, 0.0),
        ("needle", 1.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "words", "--picture", "map.png"], "shows where needles are found"),
        (["--url", "http://127.0.0.1:9/v1", "--index", "."], "exclude each other"),
        (["--url", "http://127.0.0.1:9/v1", "--lengths", "400"], "gave no completion"),
    ],
)
def test_what_the_command_refuses(options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["tasks", "some-model", *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert CliRunner().invoke(main, ["tasks", "some-model", "--lengths", "0"]).exit_code == 2


def test_a_server_that_refuses_is_quoted() -> None:
    with pytest.raises(FreeholdError, match="gave no completion"):
        Endpoint("http://127.0.0.1:9/v1", "m").answer("x", 1)


class Liar(BaseHTTPRequestHandler):
    """Answers with the words of the path's first part."""

    words: ClassVar[dict[str, str]] = {
        "few": '{"choices": [{"text": "", "logprobs": {"token_logprobs": [null, -1.0]}}]}',
        "nan": '{"choices": [{"text": "", "logprobs": {"token_logprobs": [null, NaN]}}]}',
        "above": '{"choices": [{"text": "", "logprobs": {"token_logprobs": [null, 2.5]}}]}',
        "long": '{"choices": [{"text": "", "logprobs": {"token_logprobs": [null, -1' + "0" * 400 + "]}}]}",
        "deep": "[" * 100_000,
        "none": "null",
        "number": '{"choices": [{"text": 5}]}',
    }
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.path.split("/")[1]
        if kind == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        elif kind == "refusal":
            self.wfile.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        elif kind == "noise":
            self.wfile.write(b"\x1b[31mHELLO\r\n\r\n")
        elif kind == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "/other")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.words[kind].encode())

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        self.send_error(404)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def liar() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few", "gave 1 losses for 256 characters; a window needs 7"),
        ("nan", "gave nan as logarithm of a probability"),
        ("above", "gave 2.5 as logarithm of a probability"),
        ("long", "did not score the prompt"),
        ("deep", "gave no completion: maximum recursion depth"),
        ("none", "gave no completion"),
        ("half", "gave no completion: IncompleteRead"),
        ("noise", r"gave no completion: \x1b[31mHELLO"),
        ("elsewhere", "answered with status 302"),
        ("refusal", "answered with status 500"),
    ],
)
def test_a_server_that_lies_is_named(liar: str, tmp_path: Path, kind: str, message: str) -> None:
    text = tmp_path / "text.md"
    text.write_text("some words and others\n" * 300)
    options = ["--url", f"{liar}/{kind}/v1", "--text", str(text), "--windows", "1", "--window-tokens", "64", "--json"]
    done = CliRunner().invoke(main, ["eval", "m", *options, "--api-key", "secret"])
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert message in done.stderr
    assert Liar.keys == []


def test_a_completion_that_is_no_text_is_named(liar: str) -> None:
    with pytest.raises(FreeholdError, match="number/v1 gave 5 as completion; it must be a text"):
        Endpoint(f"{liar}/number/v1", "m").answer("x", 1)


def test_addresses_and_keys_that_cannot_be() -> None:
    for url in ("some", "file:///etc"):
        with pytest.raises(ArgumentError, match="must begin with http"):
            Endpoint(url, "m")
    with pytest.raises(ArgumentError, match="characters that no header takes") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m", "secret\n")
    assert "secret" not in str(caught.value)
    for url in ("http://127.0.0.1:port/v1", "http://[::1/v1", "http://a b/v1"):
        with pytest.raises(FreeholdError, match="gave no completion"):
            Endpoint(url, "m").answer("x", 1)


@pytest.fixture(scope="module")
def asked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asked")
    write_tiny_llama(TinyLlamaSpec("asked", num_layers=2, seed=3), path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "400,30"], "lengths has 30, of which 24 are for the answer: the question does not fit into 6"),
        (["--lengths", "12"], "lengths has 12, of which 24 are for the answer"),
        (["--lengths", "400,2049"], "lengths has 2049; the model's context has 2048 tokens"),
        (["--lengths", "400", "--task", "lookup"], "are no tokens of this model"),
        (["--lengths", "400", "--picture", "nowhere/map.png"], "map.png"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(asked_model: Path, options, message, monkeypatch) -> None:
    monkeypatch.setattr("freehold.evaluation.answers.LocalModel.answer", None)
    done = CliRunner().invoke(main, ["tasks", str(asked_model), "--task", "needle", *options])
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert "questions:" not in done.stderr


def test_a_picture_has_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.evaluation.needle_map.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="needs matplotlib"):
        check_picture(tmp_path / "map.png")
    monkeypatch.setattr("freehold.evaluation.needle_map.find_spec", lambda name: name)
    check_picture(tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "map.png").write_bytes(b"before")
    check_picture(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes() == b"before"
    with pytest.raises(ArgumentError, match="no picture can be written there"):
        check_picture(tmp_path / "nowhere" / "map.png")


LOOKUP_WORD = re.compile(r"<(?:set|get|(?:name|value|noise)-\d+)>")


class Lookup:
    """Finds what stands beside the name that is asked for, in the words of the task."""

    def count(self, text: str) -> int:
        return len(LOOKUP_WORD.findall(text))

    def answer(self, prompt: str, max_tokens: int) -> str:
        tokens = LOOKUP_WORD.findall(prompt)
        assert "".join(tokens) == prompt
        facts = {tokens[i + 1]: tokens[i + 2] for i, word in enumerate(tokens[:-2]) if word == "<set>"}
        return facts[tokens[-1]] if tokens[-2] == "<get>" else ""


@pytest.mark.parametrize("length", [256, 3000])
@pytest.mark.parametrize("count", [1, 48, 60])
def test_a_lookup_has_one_answer_and_a_text_in_common(length: int, count: int) -> None:
    questions = lookups(RETRIEVAL_WORDS, length, count, depths=4, seed=1)
    assert len({question.prompt for question in questions}) == len(questions) == count
    for question in questions:
        assert Lookup().count(question.prompt) == length
        assert question.score(Lookup().answer(question.prompt, 1)) == 1.0
    starts = {question.prompt[: question.prompt.rindex("<get>")] for question in questions[:48]}
    assert len(starts) == 1


def test_facts_lie_at_every_depth() -> None:
    text = lookups(RETRIEVAL_WORDS, 3000, 1, depths=4, seed=1)[0].prompt
    places = [i for i, word in enumerate(LOOKUP_WORD.findall(text)) if word == "<set>"]
    assert [sum(a <= place / 3000 < a + 0.25 for place in places) for a in (0, 0.25, 0.5, 0.75)] == [12] * 4


def test_lookups_fill_a_map() -> None:
    asked = {"depths": 4, "questions": 12, "seed": 0, "progress": lambda *_: None}
    cells = ask_all(Lookup(), ["lookup"], [400, 900], **asked)
    assert [(c.length, c.depth, c.score, c.questions, c.tokens) for c in cells] == [
        (length, depth, 1.0, 12, length - 1) for length in (400, 900) for depth in (0.125, 0.375, 0.625, 0.875)
    ]


@pytest.mark.parametrize(("depths", "questions"), [(5, 1), (5, 4), (48, 1), (7, 6)])
def test_few_lookups_are_about_every_depth(depths: int, questions: int) -> None:
    asked = {"depths": depths, "questions": questions, "seed": 0, "progress": lambda *_: None}
    cells = ask_all(Lookup(), ["lookup"], [400, 900], **asked)
    assert [cell.questions for cell in cells] == [questions] * (2 * depths)


def test_lookups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match="does not fit into 100 tokens; it needs 194"):
        lookups(RETRIEVAL_WORDS, 100, 1, depths=1, seed=0)
    with pytest.raises(ArgumentError, match="depths is 49"):
        lookups(RETRIEVAL_WORDS, 1000, 1, depths=49, seed=0)
