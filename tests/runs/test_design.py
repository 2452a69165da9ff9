from dcamt.runs.design import ablation_rows, parse_rows


def test_rows_with_options():
    rows = parse_rows("vnet,dca-mt:bandwidths=[0.5,1]:targets=hard")
    assert [row.name for row in rows] == ["vnet", "dca-mt:bandwidths=[0.5,1]:targets=hard"]
    assert rows[1].method.options == {"bandwidths": [0.5, 1], "targets": "hard"}


def test_the_ablation_has_the_papers_rows():
    rows = ablation_rows()
    assert [row.name for row in rows] == ["Base", "Loss", "CrossAttention", "Mutual", "All"]
    assert {row.method.name for row in rows} == {"dca-mt"}
    components = [row.method.options["components"] for row in rows]
    assert components == ["base", "loss", "cross-attention", "mutual", "all"]
