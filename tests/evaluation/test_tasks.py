"""Questions about long texts: they fit, their answers stand in them, and somebody who reads well scores 1."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.cli.main import main
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.evaluation.answers import Endpoint
from freehold.evaluation.lookup import lookups
from freehold.evaluation.needle_map import ask_all, draw
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


def test_lookups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match="does not fit into 100 tokens; it needs 194"):
        lookups(RETRIEVAL_WORDS, 100, 1, depths=1, seed=0)
    with pytest.raises(ArgumentError, match="depths is 49"):
        lookups(RETRIEVAL_WORDS, 1000, 1, depths=49, seed=0)
