"""What is drafted, from words for tokens: the same lists with numbers would say less."""

from __future__ import annotations

from pixelrt.drafts import KEPT, Drafts, Example, followers
from pixelrt.generate import Codebook
from pixelrt.wording import filled, form_of, matched

NUMBERS: dict[str, int] = {}


def ids(text: str) -> list[int]:
    return [NUMBERS.setdefault(word, len(NUMBERS)) for word in text.split()]


def words(tokens: list[int]) -> str:
    names = {number: word for word, number in NUMBERS.items()}
    return " ".join(names[token] for token in tokens)


RUN = "S0 S1 S2 S3 S4 S5"
CODEBOOK = Codebook(tuple(ids(RUN)))
COMMON = frozenset(ids("the ."))
MUG = Example(ids("segment the mug ."), ids(f"sure , the mug {RUN} . END"), 1)
CUP = Example(ids("segment the red cup ."), ids(f"sure , the red cup {RUN} . END"), 1)
PAIR = Example(
    ids("segment the fork and the old knife ."),
    ids(f"sure , the fork {RUN} and the old knife {RUN} . END"),
    1,
)
TWICE = Example(ids("segment the spoon ."), ids(f"sure , the spoon {RUN} and the spoon {RUN} . END"), 1)
ABSENT = Example(ids("where is the blue plate ?"), ids("there is no blue plate . END"), 1)
FIRST = [MUG, CUP, PAIR, TWICE, ABSENT]


def said(tokens: list[int]) -> str:
    return words(tokens).replace(RUN, "*")


def draft(question: str, examples: list[Example] = FIRST):
    return Drafts(CODEBOOK, examples).of(ids(question))


def shown(form: tuple[int, ...]) -> str:
    return " ".join(f"<{-token}>" if token < 0 else words([token]) for token in form).replace(RUN, "*")


def test_names_are_cut_out() -> None:
    wording, shape = form_of(PAIR.question, PAIR.answer, COMMON, CODEBOOK.ids)
    assert shown(wording) == "segment the <1> and the <2> ."
    assert shown(shape) == "sure , the <1> * and the <2> * . END"
    wording, shape = form_of(TWICE.question, TWICE.answer, COMMON, CODEBOOK.ids)
    assert (shown(wording), shown(shape)) == (
        "segment the <1> .",
        "sure , the <1> * and the <1> * . END",
    )
    wording, shape = form_of(ABSENT.question, ABSENT.answer, COMMON, CODEBOOK.ids)
    assert (shown(wording), shown(shape)) == ("where is the <1> ?", "there is no <1> . END")


def test_names_of_a_list_do_not_touch() -> None:
    question = ids("segment the fork , the old knife and the red cup .")
    answer = ids(f"sure , the fork {RUN} , the old knife {RUN} and the red cup {RUN} . END")
    wording, shape = form_of(question, answer, COMMON, CODEBOOK.ids)
    assert shown(wording) == "segment the <1> , the <2> and the <3> ."
    assert shown(shape) == "sure , the <1> * , the <2> * and the <3> * . END"


def test_an_answer_in_other_words_has_no_names() -> None:
    question, answer = ids("segment the round thing ."), ids(f"sure , the mug {RUN} . END")
    assert form_of(question, answer, COMMON, CODEBOOK.ids) == (tuple(question), tuple(answer))
    assert form_of([], answer, COMMON, CODEBOOK.ids) == ((), tuple(answer))


def test_a_wording_gives_the_names_of_a_question() -> None:
    one, _ = form_of(MUG.question, MUG.answer, COMMON, CODEBOOK.ids)
    two, shape = form_of(PAIR.question, PAIR.answer, COMMON, CODEBOOK.ids)
    names = matched(two, ids("segment the big old plate and the mug ."))
    assert names is not None and [words(name) for name in names] == ["big old plate", "mug"]
    assert said(filled(shape, names)) == "sure , the big old plate * and the mug * . END"
    for other in ("segment the mug", "find the mug .", "segment the .", "segment the mug . .", ""):
        found = matched(one, ids(other))
        assert found is None or other == "segment the mug . .", other
    assert matched(two, ids("segment the mug .")) is None
    assert matched(two, ids("segment the and the mug .")) is None  # a name has a word
    assert matched((), ids("anything")) == []
    assert matched(one[:1], ids("segment the mug .")) is None


def test_the_whole_answer_is_drafted() -> None:
    assert said(draft("segment the green bottle .")([])) == "sure , the green bottle * . END"
    both = draft("segment the green bottle and the fork .")
    assert said(both([])) == "sure , the green bottle * and the fork * . END"


def test_a_wording_of_refusals_is_drafted_with_a_mask() -> None:
    """Whether a thing is there is not known yet; where it is not, the answer is drafted again."""
    one = draft("where is the fork ?")
    assert said(one([])) == "sure , the fork * . END"
    assert said(one(ids("there"))) == "is no fork . END"
    assert said(one(ids(f"sure , the fork {RUN} and"))) == "the fork * . END"


def test_a_question_that_nothing_is_known_of() -> None:
    sure, short = Example([], ids(f"sure , it is {RUN} . END")), Example([], ids(f"it is {RUN} . END"))
    one = draft("what is here ?", [sure, short])
    assert said(one([])) == "sure , it is * . END"
    assert said(one(ids("it"))) == "is * . END"
    assert draft("what is here ?", [])([]) == []


def test_questions_asked_before() -> None:
    drafts = Drafts(CODEBOOK)
    for _ in range(2):
        one = drafts.of(ids("what is here ?"))
        drafts.learn(one, ids("a star . END"))
    assert said(drafts.of(ids("what is here ?"))([])) == "a star . END"
    assert [example.met for example in drafts.examples] == [2]
    drafts.forget(ids("what is here ?"))
    assert drafts.examples == []
    drafts.learning = False
    drafts.learn(one, ids("a star . END"))
    assert drafts.examples == []


def test_the_wording_of_answers_is_learnt() -> None:
    """However the model words it: the second question of a kind is drafted right."""
    drafts = Drafts(CODEBOOK, [Example([], ids(f"sure , it is {RUN} . END"))])
    for name in ("mug", "red cup", "old brown bottle", "fork"):
        one = drafts.of(ids(f"outline the {name} for me ."))
        drafts.learn(one, ids(f"voila : my {name} {RUN} ! END"))
    assert said(one([])) == "voila : my fork * ! END"


def test_examples_that_are_met_are_kept() -> None:
    drafts = Drafts(CODEBOOK, [Example(ids("what is here ?"), ids("a star . END"), 2)])
    for n in range(KEPT + 9):
        drafts.learn(drafts.of(ids(f"q{n}")), ids(f"a{n}"))
    assert len(drafts.examples) == KEPT
    assert drafts.examples[0].met == 2
    assert words(drafts.examples[-1].answer) == f"a{KEPT + 8}"


def test_after_a_surprise_the_draft_is_taken_up_again() -> None:
    one = draft("segment the green bottle .")
    assert said(one(ids("yes , the"))) == "green bottle * . END"
    # The words of the question, where the draft has none of them.
    other = draft("segment the old red mug on it .", [ABSENT])
    assert said(other(ids("sure , the old"))) == "red mug on it ."
    # One word for another: what follows the word that was drafted here.
    assert said(one(ids("sure , the green vase"))) == "* . END"


def test_the_rest_of_a_run_is_known() -> None:
    one = draft("segment it .", [])
    assert words(one(ids("sure S0"))) == "S1 S2 S3 S4 S5"
    assert words(one(ids("S0 S1 S2 S3"))) == "S4 S5"
    assert one(ids(RUN)) == []


def test_followers_are_those_of_the_last_place() -> None:
    assert words(followers(ids("a b c a b d e"), ids("a b"))) == "d e"
    assert followers(ids("a b"), ids("b")) == []
    assert followers(ids("a"), ids("a b")) == []
