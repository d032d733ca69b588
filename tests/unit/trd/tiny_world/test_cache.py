import pytest

from recipe.trd.tiny_world.cache import Stage, building, content_key, is_built

STAGE = Stage("models", "key", ("folder", "file.txt"))


def write_outputs(folder, text):
    (folder / "folder").mkdir()
    (folder / "folder" / "weights").write_text(text)
    (folder / "file.txt").write_text(text)


def test_outputs_appear_together_and_count_for_their_key_only(tmp_path):
    with building(tmp_path, STAGE) as folder:
        write_outputs(folder, "first")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "weights").read_text() == "first"
    assert is_built(tmp_path, STAGE)
    assert not is_built(tmp_path, Stage("models", "other key", STAGE.outputs))


def test_new_outputs_replace_old_ones(tmp_path):
    for text in ("first", "second"):
        with building(tmp_path, STAGE) as folder:
            write_outputs(folder, text)
    assert (tmp_path / "folder" / "weights").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder", "stages"]


def break_off(out):
    with building(out, STAGE) as folder:
        write_outputs(folder, "first")
        raise RuntimeError("stop")


def test_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        break_off(tmp_path)
    assert not is_built(tmp_path, STAGE)
    assert list(tmp_path.iterdir()) == []


def test_commit_that_breaks_off_does_not_count(tmp_path):
    with building(tmp_path, STAGE) as folder:
        write_outputs(folder, "first")
    with pytest.raises(FileNotFoundError), building(tmp_path, STAGE) as folder:
        (folder / "folder").mkdir()  # file.txt is missing: the commit fails half way
    assert not is_built(tmp_path, STAGE)


def test_missing_output_does_not_count(tmp_path):
    with building(tmp_path, STAGE) as folder:
        write_outputs(folder, "first")
    (tmp_path / "file.txt").unlink()
    assert not is_built(tmp_path, STAGE)


def test_key_sees_meaning_but_not_wording_of_sources(tmp_path):
    def key(source, name="module.py"):
        path = tmp_path / name
        path.write_text(source)
        return content_key(config={}, sources=[path], upstream=())

    code = 'def f():\n    """Doc."""\n    return 1\n'
    assert key(code) == key('# comment\ndef f():\n    """Other."""\n    return (1)  # one\n')
    assert key(code) == key(f"from elsewhere import thing\n\n{code}")
    assert key(code) != key(code.replace("1", "2"))
    assert key("# text", "t.jinja") != key("# other", "t.jinja")


def test_key_sees_configuration_and_inputs():
    keys = {
        content_key(config=config, sources=(), upstream=upstream)
        for config in ({"a": 1}, {"a": 2})
        for upstream in ([], ["x"])
    }
    assert len(keys) == 4
