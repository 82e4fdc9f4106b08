from jmudsc.repairs.visits import visits_of


def order(*layers):
    """Write the steps in order; `<` is a way back, `'` a second look.

    A place that is negative is that of a use on what one before it made.
    """
    places = [list(map(abs, layer)) for layer in layers]
    is_led = [any(place < 0 for place in layer) for layer in layers]
    return [
        "<" * visit.goes_back + str(visit.step) + "'" * visit.is_again
        for visit in visits_of(places, is_led)
    ]


def test_layers_are_looked_at_once_where_no_input_depends_on_its_own_kernel():
    assert order([0], [1], [2, 4], [3]) == ["0", "1", "2", "3"]


def test_all_from_the_first_use_of_a_recurrent_kernel_to_the_last_is_seen_twice():
    assert order([0], [1, -3, -5], [2, -4, -6], [7]) == [
        *("0", "1", "2"),
        *("<1'", "2'", "3"),
    ]


def test_two_loops_one_after_the_other_are_done_one_after_the_other():
    assert order([0, -1], [2, -3]) == ["0", "<0'", "1", "<1'"]
