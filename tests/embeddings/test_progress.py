from product_classificator.embeddings import progress


def test_where_bars_cannot_move_lines_say_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_S", -1.0)
    with progress.bars() as bars:
        products, steps = (bars.add_task(name, total=4, notes="") for name in ("products", "steps"))
        bars.update(products, completed=1)
        bars.advance(products)
        bars.update(steps, completed=4)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line[2] for line in lines if line[0] == "products"][:3] == ["1/4", "2/4", "2/4"]
    assert sum(line[0] == "steps" for line in lines) >= 3


def test_before_half_a_minute_there_are_no_lines(capsys):
    with progress.bars() as bars:
        bars.update(bars.add_task("products", total=4, notes=""), completed=1)
        assert capsys.readouterr().err == ""
