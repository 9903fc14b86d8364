"""Images and audio in the engine: what is computed and reused, and that text streams continue meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_tools import Request, ask, asleep, running
from llama_corral.common.base.errors import ApiError, InvalidRequest, NotSupported, ServerFault
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.worker.engine.batching.decode import BatchDecoder
from llama_corral.worker.engine.batching.media_tokens import content_of
from llama_corral.worker.engine.llama.batch import MediaBatch
from llama_corral.worker.engine.llama.context import ABORTED, Context
from llama_corral.worker.engine.media.projector import Projector
from llama_corral.worker.engine.messages import (
    MEDIA_TOKEN,
    Embedded,
    Embedding,
    Finished,
    Generation,
    PromptText,
    Sampling,
)
from llama_corral.worker.engine.runner import LoadedModel, LoadError
from media_engine import ALL, CAT, ENDLESS, EXACT, KINDS, WIDE, M, look, seeing
from media_files import png, wav


@pytest.mark.parametrize("kind", [*KINDS, "recurrent"])
async def test_cached_and_fresh_prompts_with_media_give_the_same_answer(models: Path, kind: str) -> None:
    """A prompt that reuses a slot's contents gives the same answer as the same prompt computed as a whole."""
    one, other = ALL[kind][2]
    prompts: list[tuple[str, Sequence[bytes]]] = [
        (f"What is {M} here", [one]),
        (f"What is {M} here, and there", [one]),
        (f"What is {M} here", [other]),
        (f"{M}{M} both", [one, one]),
        (f"{M} both", [one]),
        (f"{M}{M} both of them", [one, other]),
        (f"What is {M}", [one]),
        (f"What is {M}", [one]),
        ("What is it", []),
    ]

    async with seeing(models, kind) as engine, engine.use() as loaded:
        assert (loaded.media.vision, loaded.media.audio, loaded.media.marker) == (*ALL[kind][3], M)
        for text, files in prompts:
            cached = await look(loaded, text, *files, id_slot=0).one()
            fresh = await look(loaded, text, *files, id_slot=1, cache_prompt=False).one()
            assert cached.tokens == fresh.tokens
            assert cached.timings.cache_n + cached.timings.prompt_n == cached.n_prompt == fresh.timings.prompt_n
        answers = [await look(loaded, f"What is {M} here", file, id_slot=0).one() for file in (one, other)]
        assert answers[0].tokens != answers[1].tokens


@pytest.mark.parametrize("kind", KINDS)
async def test_an_image_is_computed_once(models: Path, kind: str) -> None:
    one, other = KINDS[kind][2]

    async with seeing(models, kind, swa_full=True) as engine, engine.use() as loaded:
        first = await look(loaded, f"What is {M} here", one, id_slot=0).one()
        tokens, media = loaded.tokenize_media([PromptText(f"What is {M} here")], [one])
        assert tokens.count(MEDIA_TOKEN) == media[0].n_tokens == len(tokens[media[0].start :]) - tokens[::-1].index(-1)
        assert (media[0].n_pos < media[0].n_tokens) == (kind == "qwen2vl")
        again = await look(loaded, f"What is {M} there", one, id_slot=0).one()
        assert again.timings.cache_n >= media[0].start + media[0].n_tokens
        changed = await look(loaded, f"What is {M} here", other, id_slot=0).one()
        assert changed.timings.cache_n == media[0].start
        assert first.n_cached == len(tokens) + 7
        ending = f"What is {M}"
        last = [await look(loaded, ending, one, id_slot=0).one() for _ in range(2)]
        if loaded.tokenize_media([PromptText(ending)], [one])[0][-1] == MEDIA_TOKEN:
            assert last[1].timings.prompt_n == media[0].n_tokens, "its logits are wanted: the image is seen again"


@pytest.mark.parametrize("kind", KINDS)
async def test_choices_share_an_image(models: Path, kind: str) -> None:
    async with seeing(models, kind) as engine, engine.use() as loaded:
        sampling = Sampling(seed=7, ignore_eos=True)
        both = await look(loaded, f"{M} twice", KINDS[kind][2][0], n=2, sampling=sampling).all()
        alone = await look(loaded, f"{M} twice", KINDS[kind][2][0], sampling=Sampling(seed=8, ignore_eos=True)).one()
        assert both[1].tokens == alone.tokens


async def test_a_common_image_is_copied_between_slots(models: Path) -> None:
    long = "Once upon a time there was a little rancher who kept many models in one corral. " * 3

    async with seeing(models, "qwen2vl") as engine, engine.use() as loaded:
        text = f"{M}{long}"
        requests = [look(loaded, text + end, WIDE) for end in ("one", "two")]
        answers = [await request.one() for request in requests]
        assert sum(answer.timings.prompt_n for answer in answers) < 1.5 * answers[0].n_prompt
        for end, answer in zip(("one", "two"), answers, strict=True):
            alone = await look(loaded, text + end, WIDE, cache_prompt=False).one()
            assert answer.tokens == alone.tokens


async def test_an_image_is_restored_from_host_memory(models: Path) -> None:
    async with seeing(models, "qwen2vl", parallel=1, cache_ram=64) as engine, engine.use() as loaded:
        first = await look(loaded, f"{M} what a picture", WIDE).one()
        await ask(loaded, "Something else entirely, without any picture").one()
        again = await look(loaded, f"{M} what a picture", WIDE).one()
        assert again.tokens == first.tokens
        assert again.timings.prompt_n == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_slot_files_with_images(models: Path, tmp_path: Path, kind: str) -> None:
    file, (one, other) = tmp_path / "slot", KINDS[kind][2]
    text = f"What is {M} here, and {M} there"

    async with seeing(models, kind, swa_full=True) as engine, engine.use() as loaded:
        first = await look(loaded, text, one, other, id_slot=0).one()
        saved = await loaded.save_slot(0, file)
        assert saved.n_tokens == first.n_cached
        spoilt = tmp_path / "spoilt"
        data = file.read_bytes()
        name = loaded.tokenize_media([PromptText(M)], [one])[1][0].id.encode()
        spoilt.write_bytes(data.replace(name, b"?" * len(name)))
        await loaded.erase_slot(0)
        await loaded.restore_slot(1, spoilt)
        unknown = await look(loaded, text, one, other, id_slot=1).one()
        assert (unknown.tokens, unknown.timings.cache_n < 20) == (first.tokens, True)
    async with seeing(models, kind, swa_full=True) as engine, engine.use() as loaded:
        assert (await loaded.restore_slot(0, file)).n_tokens == saved.n_tokens
        again = await look(loaded, text, one, other, id_slot=0).one()
        assert (again.tokens, again.timings.prompt_n) == (first.tokens, 1)
    async with running(models / KINDS[kind][0], parallel=2, swa_full=True) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match="Cannot restore media tokens without an mmproj"):
            await loaded.restore_slot(0, file)


@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
@pytest.mark.parametrize("kind", KINDS)
async def test_embeddings_of_images(models: Path, kind: str, pooling: str) -> None:
    one, other = KINDS[kind][2]

    async def embed(loaded: LoadedModel, text: str, *files: bytes) -> list[list[float]]:
        tokens, media = loaded.tokenize_media([PromptText(text)], files)
        events = await Request(loaded, Embedding(tokens, media=media)).until(bool)
        assert isinstance(events[0], Embedded)
        assert events[0].n_tokens == len(tokens)
        return [list(vector) for vector in events[0].vectors]

    async with seeing(models, kind, embeddings=True, pooling=pooling) as engine, engine.use() as loaded:
        texts = f"What is {M} here", f"What is {M}"
        for text in texts:
            again = await asyncio.gather(*(embed(loaded, text, file) for file in (one, one, other)))
            assert again[0] == again[1] != again[2]
        assert await embed(loaded, "What is here") != await embed(loaded, texts[0], one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafter", ["ngram-simple", "draft-simple"])
async def test_drafting_works_with_images(models: Path, kind: str, drafter: str) -> None:
    settings: dict[str, Any] = {"spec_type": (drafter,), "swa_full": True, **EXACT}
    if drafter == "draft-simple":
        settings |= {"draft": models / "tiny-llama.gguf", "model_draft": "tiny-llama.gguf"}
    else:
        settings |= {"spec_ngram_simple_size_n": 2, "spec_ngram_simple_size_m": 8}

    async def tokens(**settings: Any) -> list[tuple[int, ...]]:
        async with seeing(models, kind, **settings) as engine, engine.use() as loaded:
            requests = [look(loaded, f"What is {M} here", file, n_predict=60) for file in KINDS[kind][2]]
            text = ask(loaded, "Once upon a time", n_predict=30)
            return [(await request.one()).tokens for request in (*requests, text)]

    assert await tokens(**settings) == await tokens(swa_full=True, **EXACT)


# -- together with text ------------------------------------------------------------------------------------------------


class Gate:
    """Blocks the encoder until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        encode = Projector.encode

        def held(projector: Projector, media: Sequence[object]) -> Any:
            self.entered.set()
            assert self.open.wait(30)
            return encode(projector, media)

        monkeypatch.setattr(Projector, "encode", held)


async def test_text_streams_continue_while_an_image_is_encoded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async with seeing(models) as engine, engine.use() as loaded:
        image = look(loaded, f"What is {M} here", CAT)
        assert await asyncio.to_thread(gate.entered.wait, 30)
        text = await ask(loaded, "Once upon a time", n_predict=20).one()
        assert text.n_decoded > 0
        assert not any(isinstance(event, Finished) for event in image.events)
        gate.open.set()
        assert (await image.one()).n_decoded == 8


async def test_the_engine_idles_while_all_requests_wait_for_an_encoder(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    async with seeing(models) as engine, engine.use() as loaded:
        image = look(loaded, f"What is {M} here", CAT)
        assert await asyncio.to_thread(gate.entered.wait, 30)
        steps = 0
        step = loaded.core.step

        def counted() -> None:
            nonlocal steps
            steps += 1
            step()

        monkeypatch.setattr(loaded.core, "step", counted)
        for _ in range(50):
            await loaded.slots()
            await asyncio.sleep(0)
        before = steps
        await loaded.erase_slot(0)  # commands are still run
        assert before <= 3
        gate.open.set()
        await image.one()


async def test_a_cancel_during_encoding_leaves_no_state(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async with seeing(models, parallel=1) as engine, engine.use() as loaded:
        image = look(loaded, f"What is {M} here", CAT)
        assert await asyncio.to_thread(gate.entered.wait, 30)
        image.ticket.cancel()
        text = await ask(loaded, "What is this").one()
        gate.open.set()
        assert (await ask(loaded, "What is this", cache_prompt=False).one()).tokens == text.tokens
        assert (await look(loaded, f"What is {M} here", CAT).one()).n_decoded == 8


async def test_an_encoder_that_fails_fails_its_request_only(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_corral.worker.engine.llama.errors import EncodeError

    def broken(*_: Any) -> Any:
        raise EncodeError("failed to process mtmd chunk")

    async with seeing(models) as engine, engine.use() as loaded:
        text = ask(loaded, "Once upon a time", n_predict=50)
        with monkeypatch.context() as patch:
            patch.setattr(Projector, "encode", broken)
            error = await look(loaded, f"What is {M} here", CAT).error()
        assert isinstance(error, ServerFault)
        assert str(error) == "failed to process mtmd chunk"
        assert (await text.one()).n_decoded == 50
        assert (await look(loaded, f"What is {M} here", CAT).one()).n_decoded == 8


async def test_images_and_streams_take_turns(models: Path) -> None:
    async with seeing(models, "qwen2vl", parallel=4, ctx_size=4096) as engine, engine.use() as loaded:
        texts = [ask(loaded, f"Number {i}", n_predict=60, sampling=ENDLESS) for i in range(2)]
        images = [look(loaded, f"{M} and {M} of {i}", png(seed=i), WIDE) for i in range(2)]
        answers = [await request.one() for request in (*texts, *images)]
    async with seeing(models, "qwen2vl", parallel=1, ctx_size=4096) as engine, engine.use() as loaded:
        for i, answer in enumerate(answers[:2]):
            assert (await ask(loaded, f"Number {i}", n_predict=60, sampling=ENDLESS).one()).tokens == answer.tokens
        for i, answer in enumerate(answers[2:]):
            assert (await look(loaded, f"{M} and {M} of {i}", png(seed=i), WIDE).one()).tokens == answer.tokens


async def test_many_images_are_encoded_in_groups(models: Path) -> None:
    files = [png(seed=seed) for seed in range(6)]
    text = " and ".join([M] * 6)

    answers = []
    for most in (16, 40, 1000):
        async with seeing(models, mtmd_batch_max_tokens=most, swa_full=True) as engine, engine.use() as loaded:
            answers.append((await look(loaded, text, *files).one()).tokens)
    assert answers[0] == answers[1] == answers[2]


async def test_a_full_pool_makes_room_for_an_image(models: Path) -> None:
    """Idle slots are cleared, and the answer is the same as with an empty pool."""

    async with seeing(models, "qwen2vl", parallel=-1, ctx_size=256, cache_ram=0) as engine, engine.use() as loaded:
        for i in range(3):
            await ask(loaded, f"{i} Once upon a time there was a little rancher", n_predict=40, id_slot=i).one()
        answer = await look(loaded, f"{M}{M}{M} what a view", WIDE, WIDE, WIDE, id_slot=3).one()
        assert answer.timings.cache_n == 0
    async with seeing(models, "qwen2vl", ctx_size=256, parallel=1) as engine, engine.use() as loaded:
        text = f"{M}{M}{M} what a view"
        assert (await look(loaded, text, WIDE, WIDE, WIDE).one()).tokens == answer.tokens


async def test_an_image_is_computed_again_after_an_abort(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an abort within an image the whole image is computed again."""
    decode, n_calls = Context.decode, 0

    def interrupted(context: Context, batch: Any, begin: int, n: int) -> int:
        nonlocal n_calls
        if isinstance(batch, MediaBatch):
            n_calls += 1
            if n_calls == 2:
                return ABORTED
        return decode(context, batch, begin, n)

    async with seeing(models, "qwen2vl", ubatch_size=8, batch_size=8) as engine, engine.use() as loaded:
        whole = await look(loaded, f"a {M} b", WIDE, id_slot=0).one()
        monkeypatch.setattr(Context, "decode", interrupted)
        again = await look(loaded, f"a {M} b", WIDE, id_slot=1, cache_prompt=False).one()
        assert n_calls > 3
        assert again.tokens == whole.tokens


async def test_a_cancel_in_the_middle_of_an_image(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seeing(models, "qwen2vl", ubatch_size=8, batch_size=8, parallel=1) as engine, engine.use() as loaded:
        fresh = await ask(loaded, "a b c d").one()
        decode = Context.decode
        halfway, n_parts = threading.Event(), 0

        def slow(context: Context, batch: Any, begin: int, n: int) -> int:
            nonlocal n_parts
            result = decode(context, batch, begin, n)
            n_parts += isinstance(batch, MediaBatch)
            if n_parts == 2 and isinstance(batch, MediaBatch):
                halfway.set()
                request.ticket._job.cancelled = True
                return ABORTED
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Context, "decode", slow)
            request = look(loaded, f"a {M} b", WIDE)
            assert await asyncio.to_thread(halfway.wait, 30)
            loaded._thread.post(lambda: loaded.core.cancel(request.ticket._job))
            await loaded.erase_slot(0)
        assert (await ask(loaded, "a b c d").one()).tokens == fresh.tokens


FFPROBE = """#!/bin/sh
touch "$(dirname "$0")/launched"
cat > /dev/null
printf 'width=64\nheight=64\nr_frame_rate=25/1\nduration=0.75\n'
"""
FFMPEG = """#!/bin/sh
cat > /dev/null
head -c 36864 /dev/zero
"""  # three pictures
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(100)


@pytest.mark.parametrize(
    ("data", "is_one"), [(VIDEO, True), (b"#EXTM3U\nfile:///etc/passwd\n" + bytes(200), False), (b"G" * 100, False)]
)
async def test_video_is_read_by_ffmpeg(models: Path, tmp_path: Path, data: bytes, is_one: bool) -> None:
    for name, script in (("ffprobe", FFPROBE), ("ffmpeg", FFMPEG)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)

    async with seeing(models, video_ffmpeg_dir=str(tmp_path)) as engine, engine.use() as loaded:
        assert loaded.media.video
        if is_one:
            tokens, media = loaded.tokenize_media([PromptText(f"What is {M} here")], [data])
            assert [chunk.n_tokens for chunk in media] == [16, 16, 16]
            assert len({chunk.id for chunk in media}) == 3
            assert (await look(loaded, f"What is {M} here", data).one()).n_prompt == len(tokens)
        else:
            with pytest.raises(InvalidRequest, match="Failed to load"):
                loaded.tokenize_media([PromptText(M)], [data])
    assert (tmp_path / "launched").exists() == is_one


async def test_streams_continue_between_the_parts_of_an_image(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchDecoder, "n_prompt_with_streams", 4)
    order: list[str] = []
    decode = Context.decode

    def noted(context: Context, batch: Any, begin: int, n: int) -> int:
        order.append("image" if isinstance(batch, MediaBatch) else "text")
        return decode(context, batch, begin, n)

    async with seeing(models, "qwen2vl") as engine, engine.use() as loaded:
        alone = await look(loaded, f"a {M} b", WIDE, cache_prompt=False).one()
        text = ask(loaded, "Once upon a time", n_predict=200, sampling=ENDLESS, stream=True)
        await text.until(lambda events: len(events) > 2)
        monkeypatch.setattr(Context, "decode", noted)
        image = await look(loaded, f"a {M} b", WIDE, cache_prompt=False).one()
        await text.one()
        assert image.tokens == alone.tokens
        n_tokens = loaded.tokenize_media([PromptText(M)], [WIDE])[1][0].n_tokens
        assert order.count("image") == -(-n_tokens // 4)
        assert "image,image" not in ",".join(order)


@pytest.mark.parametrize("model", ["tiny-llama.gguf", "tiny-mamba.gguf", "tiny-gemma3.gguf"])
async def test_a_cancelled_recording_leaves_no_state(models: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """No rows of it remain, neither in its slot nor in one to which a common prefix was copied."""
    decode = Context.decode
    halfway, n_parts = threading.Event(), 0

    def counted(context: Context, batch: Any, begin: int, n: int) -> int:
        nonlocal n_parts
        result = decode(context, batch, begin, n)
        n_parts += isinstance(batch, MediaBatch)
        if n_parts == 3:
            halfway.set()
        return result

    story = "Once upon a time there was a little rancher who kept many models in one corral. " * 3

    settings = {"parallel": 2, "warmup": False, "ubatch_size": 32, "batch_size": 32}
    projector = models / "mmproj-audio.gguf"
    async with running(models / model, projector=projector, **settings) as engine, engine.use() as loaded:
        monkeypatch.setattr(Context, "decode", counted)
        half = look(loaded, f"{story}{M}", wav(), id_slot=0)
        assert await asyncio.to_thread(halfway.wait, 30)
        other = await ask(loaded, f"{story}and so on", id_slot=1).one()
        half.ticket.cancel()
        own = await ask(loaded, f"{story}and so on", id_slot=0).one()
        fresh = await ask(loaded, f"{story}and so on", id_slot=0, cache_prompt=False).one()
        assert other.tokens == own.tokens == fresh.tokens


# -- rejected requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "files", "why"),
    [
        (f"What is {M}", [b"no picture"], "Failed to load image or audio file"),
        (f"What is {M}", [b""], "Failed to load image or audio file"),
        (f"What is {M}", [CAT[: len(CAT) // 2]], "Failed to load image or audio file"),
        (f"What is {M}", [b"fLaC" + b"\xff" * 60], "4 hours"),
        (f"What is {M}", [wav()], "Failed to load image or audio file"),
        ("What is it", [CAT], "Failed to tokenize prompt: it has 0 media markers for 1 file"),
        (f"{M}{M}", [CAT], "Failed to tokenize prompt: it has 2 media markers for 1 file"),
    ],
)
async def test_files_that_do_not_match_the_prompt_are_rejected(
    models: Path, text: str, files: list[bytes], why: str
) -> None:
    async with seeing(models) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest) as caught:
            loaded.tokenize_media([PromptText(text)], files)
        assert why in str(caught.value)


async def test_an_image_larger_than_a_physical_batch_is_rejected(models: Path) -> None:
    """Its tokens attend to each other: llama.cpp would abort the process."""

    async with seeing(models, ubatch_size=8, batch_size=8) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match=r"image .16 tokens. is too large to process"):
            look(loaded, f"What is {M}", CAT)
    async with seeing(models, "qwen2vl", ubatch_size=8, batch_size=8) as engine, engine.use() as loaded:
        small = await look(loaded, f"What is {M}", CAT).one()
    async with seeing(models, "qwen2vl") as engine, engine.use() as loaded:
        assert (await look(loaded, f"What is {M}", CAT).one()).tokens == small.tokens


async def test_pixels_are_freed_once_they_are_read(models: Path) -> None:
    async with seeing(models) as engine, engine.use() as loaded:
        tokens, media = loaded.tokenize_media([PromptText(f"What is {M}")], [CAT])
        request = Generation(tokens=tokens, media=media, n_predict=8, sampling=ENDLESS)
        assert content_of(media[0]).prepared is not None
        await Request(loaded, request).one()
        assert content_of(media[0]).prepared is None
        with pytest.raises(ServerFault, match="cannot be used again"):
            Request(loaded, request)


async def test_prompts_longer_than_the_context_are_rejected(models: Path) -> None:
    async with seeing(models, "audio", ctx_size=256, parallel=1) as engine, engine.use() as loaded:
        with pytest.raises(ApiError, match="exceeds the available context size"):
            look(loaded, f"{M} and {M}", wav(), wav())


async def test_a_model_without_a_projector_rejects_media(models: Path) -> None:
    async with seeing(models) as engine, engine.use() as loaded:
        tokens, media = loaded.tokenize_media([PromptText(M)], [CAT])
    async with running(models / "tiny-gemma3.gguf") as engine, engine.use() as loaded:
        assert loaded.media is None
        with pytest.raises(NotSupported):
            loaded.tokenize_media([PromptText(M)], [CAT])
        with pytest.raises(NotSupported):
            Request(loaded, Generation(tokens=tokens, media=media))
        with pytest.raises(InvalidRequest, match="invalid tokens"):
            Request(loaded, Generation(tokens=tokens))


@pytest.mark.parametrize(
    ("projector", "why"),
    [
        ("missing.gguf", "missing.gguf"),
        ("not-a-model.gguf", "not-a-model.gguf"),
        ("tiny-llama.gguf", "tiny-llama.gguf"),
        ("truncated.gguf", "truncated.gguf"),
    ],
)
async def test_an_unusable_projector_fails_the_load(models: Path, projector: str, why: str) -> None:
    with pytest.raises(LoadError, match="failed to load multimodal model") as caught:
        async with running(models / "tiny-gemma3.gguf", projector=models / projector):
            pass
    assert why in str(caught.value)


async def test_a_model_without_a_kv_cache_rejects_images(models: Path) -> None:
    model, projector = models / "tiny-bert.gguf", models / "mmproj-gemma3.gguf"
    settings = {"embeddings": True, "ctx_size": 512}
    async with running(model, projector=projector, **settings) as engine, engine.use() as loaded:
        tokens, media = loaded.tokenize_media([PromptText(f"What is {M}")], [CAT])
        with pytest.raises(NotSupported, match="cannot read images"):
            Request(loaded, Embedding(tokens, media=media))


# -- sleep and unload --------------------------------------------------------------------------------------------------


async def test_a_projector_sleeps_with_its_model(models: Path) -> None:
    reports: list[WorkerReport] = []

    files = models / "tiny-gemma3.gguf", models / "mmproj-gemma3.gguf"
    async with running(files[0], reports, projector=files[1], sleep_idle_seconds=1, warmup=False) as engine:
        async with engine.use() as loaded:
            first = await look(loaded, f"What is {M}", CAT).one()
        await asleep(engine)
        info = engine.snapshot.info
        assert info is not None
        assert info.media is not None
        assert info.media.vision
        async with engine.use() as loaded:
            assert (await look(loaded, f"What is {M}", CAT).one()).tokens == first.tokens
    stages = [
        report.payload for report in reports if report.payload and report.payload.get("current") == "mmproj_model"
    ]
    assert stages[0] == {"stages": ["text_model", "mmproj_model"], "current": "mmproj_model", "value": 0.0}


async def test_a_model_can_be_freed_while_a_request_tokenizes(models: Path) -> None:
    async with seeing(models) as engine:
        async with engine.use() as loaded:
            late = loaded.tokenize_media
        await engine.close()
        with pytest.raises(ApiError):
            late([PromptText(M)], [CAT])


async def test_context_shift_is_off_with_a_projector(models: Path) -> None:
    settings = {"ctx_size": 256, "parallel": 1, "context_shift": True}

    async with seeing(models, "qwen2vl", **settings) as engine, engine.use() as loaded:
        answer = await look(loaded, f"{M} tell", WIDE, n_predict=400).one()
        assert answer.truncated
        assert answer.n_cached < 256


async def test_penalties_ignore_media_tokens(models: Path) -> None:
    async with seeing(models) as engine, engine.use() as loaded:
        penalties = Sampling(temperature=0.0, repeat_penalty=1.5, repeat_last_n=64, ignore_eos=True)
        assert (await look(loaded, f"What is {M} here", CAT, sampling=penalties).one()).n_decoded == 8
