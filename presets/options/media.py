"""The option table, part 8: images, audio and video."""

from .option import OptionGroup, Repeat, option
from .values import Names, OffBelowZero, Switch


class MediaOptions(OptionGroup):
    title = "Images and audio"

    mmproj: str = option(
        "",
        "-mm --mmproj",
        "GGUF file of the projector",
        env="MMPROJ",
        hint="FILE",
        per_model=True,
    )
    mmproj_url: str = option("", "-mmu --mmproj-url", "URL of the projector's file", env="MMPROJ_URL", hint="URL")
    mmproj_auto: Switch = option(
        True,
        "--mmproj-auto",
        "use the projector in the repository of --hf-repo",
        no="--no-mmproj --no-mmproj-auto",
        env="MMPROJ_AUTO",
    )
    mmproj_offload: Switch = option(True, "--mmproj-offload", "run the projector on the GPU", env="MMPROJ_OFFLOAD")
    mmproj_device: str = option(
        "",
        "-mmdev --mmproj-device",
        "device that runs the projector; none: CPU",
        env="$MTMD_BACKEND_DEVICE",
        hint="DEVICE",
    )
    image_min_tokens: int = option(
        -1,
        "--image-min-tokens",
        "minimum number of tokens per image; -1: the model's",
        env="IMAGE_MIN_TOKENS",
        hint="N",
    )
    image_max_tokens: int = option(
        -1,
        "--image-max-tokens",
        "maximum number of tokens per image; -1: the model's",
        env="IMAGE_MAX_TOKENS",
        hint="N",
    )
    mtmd_batch_max_tokens: OffBelowZero = option(
        1024,
        "--mtmd-batch-max-tokens",
        "limit of image tokens that are encoded in one batch; 0: one image at a time",
        env="MTMD_BATCH_MAX_TOKENS",
        hint="N",
    )
    video_fps: float = option(
        4.0, "--video-fps", "frames of a video that are used per second", env="VIDEO_FPS", hint="N"
    )
    video_timestamp_interval: int = option(
        5000,
        "--video-timestamp-interval",
        "milliseconds between two timestamps in the model's input",
        env="VIDEO_TIMESTAMP_INTERVAL",
        hint="N",
    )
    video_ffmpeg_dir: str = option(
        "", "--video-ffmpeg-dir", "directory of ffmpeg and ffprobe", env="VIDEO_FFMPEG_DIR", hint="DIR"
    )
    media_max_memory: int = option(
        512,
        "--media-max-memory",
        "MiB that the images, audio and video of one request may need when they are decoded",
        env="$LLAMA_CORRAL_MEDIA_MAX_MEMORY",
        hint="N",
    )
    media_private_hosts: Names = option(
        (),
        "--media-private-hosts",
        "non-public hosts, addresses or networks (10.0.0.0/8) that media URLs may use; all: every one",
        env="$LLAMA_CORRAL_MEDIA_PRIVATE_HOSTS",
        hint="HOSTS",
        repeat=Repeat.COMMA,
    )
