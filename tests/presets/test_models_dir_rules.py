"""Which models the files of a models directory are, and which names they have."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_corral.presets.models_dir_rules import MAX_DEPTH, decide

PLAIN = {
    "single files": ("a.gguf b-Q8_0.gguf notes.txt", {"a": "a.gguf", "b-Q8_0": "b-Q8_0.gguf"}),
    "upper case": ("UPPER.GGUF Mixed.Gguf", {"UPPER": "UPPER.GGUF", "Mixed": "Mixed.Gguf"}),
    "hidden files": ("._a.gguf .b.gguf a.gguf d/._c.gguf d/c.gguf .cache/x.gguf", {"a": "a.gguf", "d": "d/c.gguf"}),
    "companions": ("mmproj-x.gguf mtp-x.gguf dflash-x.gguf x-imatrix.gguf imatrix_x.gguf eagle3-x.gguf",
                   {"eagle3-x": "eagle3-x.gguf"}),
    "a matrix was used": ("x-imatrix-Q4_K_M.gguf", {"x-imatrix-Q4_K_M": "x-imatrix-Q4_K_M.gguf"}),
    "split": ("b-00001-of-00002.gguf b-00002-of-00002.gguf", {"b-00001-of-00002": "b-00001-of-00002.gguf"}),
    "no first part": ("b-00002-of-00002.gguf d/c-00002-of-00002.gguf", {}),
    "two quantizations in the directory itself": ("g-Q4_K_M.gguf g-Q8_0.gguf",
                                                  {"g-Q4_K_M": "g-Q4_K_M.gguf", "g-Q8_0": "g-Q8_0.gguf"}),
}  # fmt: skip
FOLDERS = {
    "one file": ("g/anything-Q8_0.gguf", {"g": "g/anything-Q8_0.gguf"}),
    "only companions": ("g/mmproj.gguf g/mtp-x.gguf g/imatrix.gguf", {}),
    "a draft with its name in the middle": ("Q3/Q3-DFlash-BF16.gguf Q3/Q3-Q4_K_M.gguf", {"Q3": "Q3/Q3-Q4_K_M.gguf"}),
    "a draft that is sorted last": ("m/m-Q4_K_M.gguf m/m-Q8_0-MTP-Q8_0.gguf", {"m": "m/m-Q4_K_M.gguf"}),
    "a draft in a folder with another name": ("x/Q3-8B-Q4_0.gguf x/Q3-8B-eagle3-F16.gguf", {"x": "x/Q3-8B-Q4_0.gguf"}),
    "a draft in upper case": ("x/MTP-q.gguf x/q.gguf", {"x": "x/q.gguf"}),
    "a draft named after the folder": ("Q3/model.gguf Q3/Q3-draft.gguf", {"Q3": "Q3/model.gguf"}),
    "only a draft": ("Q3/Q3-DFlash-BF16.gguf", {"Q3": "Q3/Q3-DFlash-BF16.gguf"}),
    "the folder has the word too": ("m-MTP/m-MTP-Q4_0.gguf m-MTP/m-MTP-Q8_0.gguf",
                                    {"m-MTP:Q4_0": "m-MTP/m-MTP-Q4_0.gguf", "m-MTP:Q8_0": "m-MTP/m-MTP-Q8_0.gguf"}),
    "another model with the word": ("a/big-Q4_0.gguf a/tiny-draft-Q8_0.gguf",
                                    {"a": "a/big-Q4_0.gguf", "a:tiny-draft-Q8_0": "a/tiny-draft-Q8_0.gguf"}),
    "two quantizations": ("gemma/gemma-Q4_K_M.gguf gemma/gemma-Q8_0.gguf",
                          {"gemma:Q4_K_M": "gemma/gemma-Q4_K_M.gguf", "gemma:Q8_0": "gemma/gemma-Q8_0.gguf"}),
    "quantizations in lower case, with a dot": ("g/x-q4_k_m.gguf g/x.q8_0.gguf g/x-bf16.gguf",
                       {"g:Q4_K_M": "g/x-q4_k_m.gguf", "g:Q8_0": "g/x.q8_0.gguf", "g:BF16": "g/x-bf16.gguf"}),
    "only quantizations as names": ("g/Q4_0.gguf g/Q8_0.gguf", {"g:Q4_0": "g/Q4_0.gguf", "g:Q8_0": "g/Q8_0.gguf"}),
    "one without quantization": ("g/x.gguf g/x-Q8_0.gguf", {"g": "g/x.gguf", "g:Q8_0": "g/x-Q8_0.gguf"}),
    "two kinds of one quantization": ("g/x-UD-Q4_K_XL.gguf g/x-Q4_K_XL.gguf",
                                      {"g:UD-Q4_K_XL": "g/x-UD-Q4_K_XL.gguf", "g:Q4_K_XL": "g/x-Q4_K_XL.gguf"}),
    "different models": ("g/a.gguf g/b.gguf", {"g": "g/b.gguf", "g:a": "g/a.gguf"}),
    "another size": ("Q3-32B/Q3-0.6B-Q8_0.gguf Q3-32B/Q3-32B-Q4_0.gguf",
                     {"Q3-32B": "Q3-32B/Q3-32B-Q4_0.gguf", "Q3-32B:Q3-0.6B-Q8_0": "Q3-32B/Q3-0.6B-Q8_0.gguf"}),
    "the folder of a repository": ("A-1B-GGUF/a_1b-Q4_0.gguf A-1B-GGUF/z.gguf",
                                   {"A-1B-GGUF": "A-1B-GGUF/a_1b-Q4_0.gguf", "A-1B-GGUF:z": "A-1B-GGUF/z.gguf"}),
    "split and quantized": ("g/x-Q4_0-00001-of-00002.gguf g/x-Q4_0-00002-of-00002.gguf g/x-Q8_0.gguf",
                            {"g:Q4_0": "g/x-Q4_0-00001-of-00002.gguf", "g:Q8_0": "g/x-Q8_0.gguf"}),
    "LM Studio": ("google/gemma-GGUF/gemma-Q4_0.gguf qwen/q/q-Q4_0.gguf qwen/q/q-Q8_0.gguf",
                  {"google/gemma-GGUF": "google/gemma-GGUF/gemma-Q4_0.gguf",
                   "qwen/q:Q4_0": "qwen/q/q-Q4_0.gguf", "qwen/q:Q8_0": "qwen/q/q-Q8_0.gguf"}),
    "a folder for each quantization": ("r/UD-Q2_K_XL/x-UD-Q2_K_XL-00001-of-00002.gguf r/BF16/x-00001-of-00003.gguf",
                                   {"r:Q2_K_XL": "r/UD-Q2_K_XL/x-UD-Q2_K_XL-00001-of-00002.gguf",
                                    "r:BF16": "r/BF16/x-00001-of-00003.gguf"}),
    "a folder named after a quantization": ("Q8_0/x.gguf", {"Q8_0": "Q8_0/x.gguf"}),
    "files at two levels": ("p/a.gguf p/r/b.gguf", {"p": "p/a.gguf", "p/r": "p/r/b.gguf"}),
    "too deep": ("/".join("abcd") + "/x.gguf " + "/".join("abcde") + "/y.gguf", {"a/b/c/d": "a/b/c/d/x.gguf"}),
    "a folder and a file of one name": ("t.gguf t/x.gguf", {"t": "t/x.gguf", "t.gguf": "t.gguf"}),
    "files that differ in the case of the ending": ("a.GGUF a.gguf", {"a": "a.GGUF", "a.gguf": "a.gguf"}),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), [*PLAIN.values(), *FOLDERS.values()], ids=[*PLAIN, *FOLDERS])
def test_names(files: str, expected: dict[str, str]) -> None:
    assert {model.name: model.model for model in decide(files.split())} == expected


@pytest.mark.parametrize(
    ("files", "aliases"),
    [
        ("g/x-Q4_K_M.gguf g/x-Q8_0.gguf", {"g": "g:Q8_0"}),
        ("g/g-Q8_0.gguf g/Q4_0/x-Q4_0.gguf g/g-BF16.gguf", {"g": "g:Q8_0"}),
        ("g/x-BF16.gguf g/x-Q4_0-00001-of-00002.gguf g/x-Q8_0.gguf", {"g": "g:Q4_0"}),
        ("g/x.gguf g/x-Q8_0.gguf", {}),
        ("g/x.gguf", {}),
    ],
)
def test_the_name_of_a_folder_stays_a_name_of_the_model_that_had_it(files: str, aliases: dict[str, str]) -> None:
    """llama-server gives it to a split model, else to the last one."""
    assert {model.alias: model.name for model in decide(files.split()) if model.alias} == aliases


@pytest.mark.parametrize(
    ("files", "projectors"),
    [
        ("g/x.gguf g/mmproj-BF16.gguf g/mmproj-F16.gguf mmproj.gguf", {"g": "g/mmproj-F16.gguf"}),
        ("g/x-Q4_0.gguf g/x-Q8_0.gguf g/MMPROJ.gguf", {"g:Q4_0": "g/MMPROJ.gguf", "g:Q8_0": "g/MMPROJ.gguf"}),
        ("g/g.gguf g/other.gguf g/mmproj.gguf", {"g": "g/mmproj.gguf", "g:other": ""}),
        ("g/Q4_0/x-Q4_0.gguf g/mmproj.gguf", {"g": "g/mmproj.gguf"}),
        ("p/r/x.gguf p/mmproj.gguf", {"p/r": ""}),
        ("x.gguf mmproj-x.gguf", {"x": ""}),
    ],
)
def test_projectors(files: str, projectors: dict[str, str]) -> None:
    assert {model.name: model.mmproj for model in decide(files.split())} == projectors


PART = st.sampled_from([
    *("a", "b", "gemma", "Q4_K_M", "UD-Q4_K_XL", "q8_0", "mtp", "MTP", "draft", "mmproj", "imatrix", ".x", "GGUF"),
])  # fmt: skip
STEM = st.lists(PART, min_size=1, max_size=3).map("-".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1
)
FILE = st.builds(
    "{}{}{}".format,
    STEM,
    st.sampled_from(["", "-00001-of-00002", "-00002-of-00002"]),
    st.sampled_from([".gguf", ".GGUF", ".txt"]),
)
PATHS = st.sets(
    st.builds(lambda folders, file: "/".join([*folders, file]), st.lists(STEM, max_size=MAX_DEPTH + 1), FILE)
)


@given(PATHS)
@example({"x.gguf", "x/a.gguf", "x.gguf/b.gguf"})
def test_any_listing(paths: set[str]) -> None:
    found = decide(paths)
    names = [model.name for model in found]
    aliases = [model.alias for model in found if model.alias]
    assert names == sorted(set(names))
    assert len({*names, *aliases}) == len(names) + len(aliases), "no name means two models"
    files = [model.model for model in found]
    assert len(set(files)) == len(files)
    used = {*files, *(model.mmproj for model in found if model.mmproj)}
    assert used <= paths
    for path in used:
        parts = path.split("/")
        assert len(parts) <= MAX_DEPTH + 1
        assert not [part for part in parts if part.startswith(".")]
        assert path.lower().endswith(".gguf")
    assert decide(sorted(paths, reverse=True)) == found, "the order of the listing does not matter"


@given(PATHS, FILE)
def test_another_folder_changes_no_name(paths: set[str], file: str) -> None:
    before = {model.name: model for model in decide(paths)}
    after = {model.name: model for model in decide({*paths, f"a new folder/{file}"})}
    assert {name: after[name] for name in before if not name.startswith("a new folder")} == before


@given(st.sets(st.from_regex(r"[a-z0-9]{1,8}(-Q\d_0)?", fullmatch=True), min_size=1))
def test_plain_files_have_the_names_of_llama_server(stems: set[str]) -> None:
    assert [model.name for model in decide(f"{stem}.gguf" for stem in stems)] == sorted(stems)
    folders = decide(f"{stem}/model-Q8_0.gguf" for stem in stems)
    assert [(model.name, model.alias) for model in folders] == [(stem, "") for stem in sorted(stems)]
