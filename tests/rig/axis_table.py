"""Axes of every make, with their size, text and labels."""

from jmudsc.spec.axes import Concat, Family, Fixed, Product, Units

A, B = Units("a", 3), Units("b", 4)
AXES = {
    "fixed": (Fixed(5), 5, "5", ()),
    "units": (A, 3, "a", ("a",)),
    "product": (Product((Fixed(2), A)), 6, "2*a", ("a",)),
    "concat": (Concat((A, Fixed(2), A)), 8, "a+2+a", ("a", "a")),
    "product of concat": (Product((Concat((A, B)), A)), 21, "(a+b)*a", ("a", "b", "a")),
    "split": (Fixed(3, 1), 3, "3#1", ()),
    "family": (Family(1, (A, Units("c", 3))), 3, "{a|c}#1", ("a", "c")),
    "product of families": (
        Product((Family(0, (A, Fixed(3))), B)),
        12,
        "{a|3}#0*b",
        ("a", "b"),
    ),
    "product of product": (Product((Product((A, B)), A)), 36, "(a*b)*a", tuple("aba")),
    "concat of concat": (Concat((A, Concat((B, A)))), 10, "a+(b+a)", tuple("aba")),
    "family of compounds": (
        Family(0, (Concat((B, A)), Product((Fixed(7), Units("c", 1))))),
        7,
        "{b+a|7*c}#0",
        tuple("bac"),
    ),
    "concat of product": (Concat((Product((A, B)), B)), 16, "a*b+b", ("a", "b", "b")),
}
