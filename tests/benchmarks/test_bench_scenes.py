"""How many of a scene's things are found first: against the picture's own answers, one condition at a time."""

from made import tiny_clip, tiny_tokenizer

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.pages.picture import gallery_of, known_products, retrieve
from lrvsf.mini.build import MiniSize, build_mini
from modeling_condvit import CondViTModel


def test_each_thing_is_asked_for_by_its_category(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.syspath_prepend("benchmarks")
    import bench_scenes

    build_mini(tmp_path, MiniSize(1, 8, 3, image_size=32), processes=1)
    test_set, encoder = ProductTestSet(tmp_path / "test"), Encoder(tiny_model.eval(), "category")
    gallery, _ = gallery_of(encoder, test_set)
    categories, naive = test_set.categories(), []
    for product, known in zip(test_set.products(), known_products(test_set), strict=True):
        answers = [retrieve(encoder, product.query_image, [categories[row]], gallery, 1) for row in known]
        naive.append([answer[categories[row]] == [row] for row, answer in zip(known, answers, strict=True)])
    assert any(map(any, naive)) and not all(map(all, naive))
    assert bench_scenes.found_first(encoder, test_set) == naive

    tiny_model.save_pretrained(tmp_path / "model")
    bench_scenes.main([str(tmp_path / "model"), str(tmp_path / "test")])
    shown, first = capsys.readouterr().out.splitlines(), [sum(found) for found in naive]
    assert shown[2] == f"| 0 | 0 | {first.count(0)} |"
    assert shown[-1].startswith(f"In {sum(map(all, naive))} of 8 scenes")


def test_two_things_of_one_scene_are_asked_for_by_their_captions_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import bench_scenes

    build_mini(tmp_path, MiniSize(1, 8, 3, image_size=32), processes=1)
    test_set = ProductTestSet(tmp_path / "two_of_a_kind")
    clip = str(tmp_path / "clip")
    tiny_clip().save_pretrained(clip)
    tiny_tokenizer().save_pretrained(clip)
    found = bench_scenes.found_first(Encoder(CondViTModel.from_clip(clip, text_encoder=clip).eval(), "text"), test_set)
    assert 2 * len(found) == test_set.n_products and {len(things) for things in found} == {2}
