"""What is drafted, from words for tokens: the same lists with numbers would say less."""

from __future__ import annotations

from pixelrt.drafts import KEPT, Drafts, Example
from pixelrt.generate import Codebook
from pixelrt.guesses import TREE, Guess, as_text, continued, within, worth_it
from pixelrt.wording import filled, form_of, matched, shown

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


def said(drafts: list[list[int]]) -> list[str]:
    return [words(tokens).replace(RUN, "*") for tokens in drafts]


def draft(question: str, examples: list[Example] = FIRST):
    return Drafts(CODEBOOK, examples).of(ids(question))


def spelled(form: tuple[int, ...]) -> str:
    return " ".join(f"<{-token}>" if token < 0 else words([token]) for token in form).replace(RUN, "*")


def test_names_are_cut_out() -> None:
    wording, shape = form_of(PAIR.question, PAIR.answer, COMMON, CODEBOOK.ids)
    assert spelled(wording) == "segment the <1> and the <2> ."
    assert spelled(shape) == "sure , the <1> * and the <2> * . END"
    wording, shape = form_of(TWICE.question, TWICE.answer, COMMON, CODEBOOK.ids)
    assert (spelled(wording), spelled(shape)) == (
        "segment the <1> .",
        "sure , the <1> * and the <1> * . END",
    )
    wording, shape = form_of(ABSENT.question, ABSENT.answer, COMMON, CODEBOOK.ids)
    assert (spelled(wording), spelled(shape)) == ("where is the <1> ?", "there is no <1> . END")


def test_names_of_a_list_do_not_touch() -> None:
    question = ids("segment the fork , the old knife and the red cup .")
    answer = ids(f"sure , the fork {RUN} , the old knife {RUN} and the red cup {RUN} . END")
    wording, shape = form_of(question, answer, COMMON, CODEBOOK.ids)
    assert spelled(wording) == "segment the <1> , the <2> and the <3> ."
    assert spelled(shape) == "sure , the <1> * , the <2> * and the <3> * . END"


def test_an_answer_in_other_words_has_no_names() -> None:
    question, answer = ids("segment the round thing ."), ids(f"sure , the mug {RUN} . END")
    assert form_of(question, answer, COMMON, CODEBOOK.ids) == (tuple(question), tuple(answer))
    assert form_of([], answer, COMMON, CODEBOOK.ids) == ((), tuple(answer))


def test_a_wording_gives_the_names_of_a_question() -> None:
    one, _ = form_of(MUG.question, MUG.answer, COMMON, CODEBOOK.ids)
    two, shape = form_of(PAIR.question, PAIR.answer, COMMON, CODEBOOK.ids)
    names = matched(two, ids("segment the big old plate and the mug ."))
    assert names is not None and [words(name) for name in names] == ["big old plate", "mug"]
    assert said([filled(shape, names)]) == ["sure , the big old plate * and the mug * . END"]
    for other in ("segment the mug", "find the mug .", "segment the .", "segment the mug . .", ""):
        found = matched(one, ids(other))
        assert found is None or other == "segment the mug . .", other
    assert matched(two, ids("segment the mug .")) is None
    assert matched(two, ids("segment the and the mug .")) is None  # a name has a word
    assert matched((), ids("anything")) == []
    assert matched(one[:1], ids("segment the mug .")) is None


def test_the_whole_answer_is_drafted() -> None:
    assert said(draft("segment the green bottle .")([]))[0] == "sure , the green bottle * . END"
    both = draft("segment the green bottle and the fork .")
    assert said(both([]))[0] == "sure , the green bottle * and the fork * . END"


def test_what_else_may_be_is_drafted_beside_it() -> None:
    """Whether a thing is there, and how often, is not known yet. A mask for each name comes first."""
    found = said(draft("where is the fork ?")([]))
    assert found[0] == "sure , the fork * . END"
    assert "there is no fork . END" in found
    assert any(each.startswith("sure , the fork * and the") for each in found)  # as far as it is worth it
    one = draft("where is the fork ?")
    assert said(one(ids("there")))[0] == "is no fork . END"
    assert "the fork * . END" in said(one(ids(f"sure , the fork {RUN} and")))


def test_a_wording_that_is_never_answered_with_a_mask() -> None:
    none = [Example(ids(f"how many {name} are there ?"), ids(f"there are {n} {name} . END"), 1)
            for name, n in (("cups", "two"), ("old mugs", "three"), ("forks", "two"), ("plates", "two"))]  # fmt: skip
    found = said(draft("how many red cups are there ?", [*FIRST, *none])([]))
    assert found[0] == "there are two red cups . END" and "there are three red cups . END" in found


def test_more_words_in_the_question_than_in_the_answer() -> None:
    """A name that was shown before is found in a longer one."""
    found = said(draft("segment the red cup on it .")([]))
    assert found[:2] == ["sure , the red cup * . END", "sure , the red cup on it * . END"]
    assert within(ids("a red cup on it"), {tuple(ids("cup")), tuple(ids("red cup"))}) == ids("red cup")
    assert within(ids("an old fork"), {tuple(ids("red cup"))}) == ids("an old fork")
    names = shown(PAIR.answer, COMMON, CODEBOOK.ids[0])
    assert {words(list(name)) for name in names} == {"fork", "old knife"}


def test_a_question_that_nothing_is_known_of() -> None:
    sure, short = Example([], ids(f"sure , it is {RUN} . END")), Example([], ids(f"it is {RUN} . END"))
    one = draft("what is here ?", [sure, short])
    assert said(one([])) == ["sure , it is * . END", "it is * . END"]
    assert said(one(ids("it")))[0] == "is * . END"
    assert draft("what is here ?", [])([]) == [] and draft("what is here ?", [])(ids("a")) == []


def test_questions_asked_before() -> None:
    drafts = Drafts(CODEBOOK)
    for _ in range(2):
        one = drafts.of(ids("what is here ?"))
        drafts.learn(one, ids("a star . END"))
    assert said(drafts.of(ids("what is here ?"))([])) == ["a star . END"]
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
    assert said(one([]))[0] == "voila : my fork * ! END"


def test_examples_that_are_met_are_kept() -> None:
    drafts = Drafts(CODEBOOK, [Example(ids("what is here ?"), ids("a star . END"), 2)])
    for n in range(KEPT + 9):
        drafts.learn(drafts.of(ids(f"q{n}")), ids(f"a{n}"))
    assert len(drafts.examples) == KEPT
    assert drafts.examples[0].met == 2
    assert words(drafts.examples[-1].answer) == f"a{KEPT + 8}"


def test_after_a_surprise_the_draft_is_taken_up_again() -> None:
    one = draft("segment the green bottle .")
    assert "green bottle * . END" in said(one(ids("yes , the")))
    # The words of the question, where the draft has none of them.
    other = draft("segment the old red mug on it .", [ABSENT])
    assert "red mug on it ." in said(other(ids("sure , the old")))
    # One word for another: what follows the word that was drafted here.
    assert said(one(ids("sure , the green vase")))[0] == "* . END"
    # Names of other answers.
    assert "knife * . END" in said(one(ids("sure , the old")))


def test_the_rest_of_a_run_is_known() -> None:
    one = draft("segment it .", [])
    assert one(ids("sure S0")) == [ids("S1 S2 S3 S4 S5")]
    assert one(ids("S0 S1 S2 S3")) == [ids("S4 S5")]
    assert one(ids(RUN)) == []


def test_an_answer_goes_on_as_texts_do() -> None:
    texts = [(as_text(ids("a b c a b d e")), 1.0), (as_text(ids("x b f")), 9.0)]
    found = sorted(continued(ids("z a b"), texts), key=lambda guess: -guess.share)
    assert [words(list(guess.ids)) for guess in found] == ["c a b d e", "d e"]
    # One token says less: it is asked where two stand nowhere.
    assert [words(list(guess.ids)) for guess in continued(ids("z b"), texts)] == ["c a b d e", "d e", "f"]
    assert list(continued(ids("q"), texts)) == [] and list(continued([], texts)) == []


def test_a_draft_is_worth_its_tokens() -> None:
    often, seldom = Guess(ids("a b c d"), 0.6), Guess(ids("a b e f"), 0.3)
    assert worth_it([often, seldom], 0.1) == [often.ids, seldom.ids]
    assert worth_it([often, seldom], 0.4) == [often.ids]
    assert worth_it([seldom, often], 0.4) == [seldom.ids]  # the first in any case
    # Of guesses that are not worth it, the beginning that they share is.
    names = [Guess(ids(f"sure the n{n} end"), 0.1) for n in range(8)]
    found = worth_it([Guess(ids("no no no"), 0.2), *names], 0.09)
    assert said(found) == ["no no no", "sure the"]
    # Equal ones count together.
    assert worth_it([often, *[Guess(ids("z y"), 0.05)] * 6], 0.15)[1:] == [ids("z y")]


def test_a_tree_has_an_end() -> None:
    many = [Guess(ids(f"a{n} b c d e f g h"), 1.0) for n in range(40)]
    assert sum(map(len, worth_it(many, 0.0))) <= TREE
    whole = Guess(ids(" ".join(f"w{n}" for n in range(2 * TREE))), 1.0)
    assert worth_it([whole, *many], 0.0) == [whole.ids]  # the likeliest answer, however long
