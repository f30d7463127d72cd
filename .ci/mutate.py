"""mutmut with what matters here: statements left out, conditions turned round; no words of messages changed."""

from collections.abc import Iterator

import libcst
from mutmut.__main__ import cli
from mutmut.mutation import mutators


def left_out(node: libcst.Expr) -> Iterator[libcst.Expr]:
    """A call that is a statement is not made: an fsync, a close, a check."""
    if isinstance(node.value, libcst.Call):
        yield node.with_changes(value=libcst.Name("None"))


def turned_round(node: libcst.If) -> Iterator[libcst.If]:
    """What was done if something holds is done if it does not; of comparisons mutmut does so itself."""
    if not isinstance(node.test, libcst.Comparison):
        inner = node.test.with_changes(lpar=[libcst.LeftParen()], rpar=[libcst.RightParen()])
        yield node.with_changes(test=libcst.UnaryOperation(libcst.Not(), inner))


TRIVIAL = {
    mutators.operator_string,
    mutators.operator_assignment,
    mutators.operator_arg_removal,
    mutators.operator_dict_arguments,
    mutators.operator_lambda,
    mutators.operator_augmented_assignment,
}
"""What changes words, or is seen by every test that runs the line."""
kept = [(kind, mutate) for kind, mutate in mutators.mutation_operators if mutate not in TRIVIAL]
mutators.mutation_operators[:] = [*kept, (libcst.Expr, left_out), (libcst.If, turned_round)]
cli()
