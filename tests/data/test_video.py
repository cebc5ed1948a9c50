"""Videos: which frames are taken, from folders and from files, and what is made of them."""

import re
import sys
from collections import Counter

import pytest
from data_files import image_bytes, turns, write_lines, write_video
from PIL import Image

from metamorph.config import DataConfig
from metamorph.data.conversation import check_conversation
from metamorph.data.families import videos
from metamorph.data.images import opened
from metamorph.data.opening import open_source
from metamorph.data.video import evenly, open_video
from metamorph.errors import SampleError, UserError

REQUESTS = {
    "next": tuple(request for some in videos.NEXT_REQUESTS.values() for request in some),
    "following": videos.FOLLOWING_REQUESTS,
    "split": videos.SPLIT_REQUESTS,
    "middle": videos.MIDDLE_REQUESTS,
    "alternating": videos.ALTERNATING_REQUESTS,
    "reverse": videos.REVERSE_REQUESTS,
    "reorder": videos.REORDER_REQUESTS,
    "step": videos.STEP_REQUESTS,
}


def brightness(images) -> list[int]:
    """Which frame of `write_video` each image is."""
    return [round(opened(image).resize((1, 1)).getpixel((0, 0))[0] / 10) for image in images]


def frame_folder(folder, frames=20, name="clip"):
    (folder / name).mkdir()
    for number in range(frames):
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(folder / name / f"{number:04}.png")


def source_of(folder, family, *records, **options):
    path = write_lines(folder / "data.jsonl", *records)
    return open_source(DataConfig(family=family, path=str(path), shuffle=False, **options), seed=0)


def test_times_are_steady_until_there_are_too_many():
    assert evenly(3.2, 1.0, 45) == [0, 1, 2]
    assert evenly(0.4, 1.0, 45) == [0]
    assert evenly(2.0, 2.0, 45) == [0, 0.5, 1.0, 1.5]
    assert evenly(100.0, 1.0, 4) == [0, 25, 50, 75]


@pytest.mark.parametrize("kind", ["folder", "mp4"])
def test_video_questions_show_frames_at_a_steady_rate(tmp_path, kind):
    record = {"id": "v", "video": "clip", "conversations": turns("<video>\nWhat happens?", "Dawn.")}
    if kind == "folder":
        frame_folder(tmp_path)
        record["fps"] = 10
    else:
        write_video(tmp_path / "clip.mp4")
        record["video"] = "clip.mp4"
    sample = source_of(tmp_path, "video_questions", record, frames_per_second=4.0).sample(0)
    check_conversation(sample)
    assert sample.turns[0].text == "<image>" * 8 + "What happens?"
    assert brightness(sample.images) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert len({image.key() for image in sample.images}) == 8
    capped = source_of(
        tmp_path, "video_questions", record, frames_per_second=10.0, max_frames=3
    ).sample(0)
    assert brightness(capped.images) == [0, 6, 13]


def test_a_folder_without_a_rate_is_taken_whole(tmp_path):
    frame_folder(tmp_path, frames=5)
    record = {"video": "clip", "conversations": turns("What?", "Dawn.")}
    sample = source_of(tmp_path, "video_questions", record, frames_per_second=2.0).sample(0)
    assert brightness(sample.images) == [0, 1, 2, 3, 4]


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(12):
        frame = Image.new("RGB", (8, 8), (10 * number,) * 3)
        frame.save(tmp_path / "clip" / f"frame{number}.png")
    record = {"video": "clip", "conversations": turns("What?", "Dawn.")}
    sample = source_of(tmp_path, "video_questions", record).sample(0)
    assert brightness(sample.images) == [*range(12)]


def test_far_frames_are_found_by_seeking(tmp_path):
    write_video(tmp_path / "long.mp4", frames=24, rate=1)
    video = open_video("long.mp4", (tmp_path / "long.mp4").read_bytes(), 10_000)
    assert video.seconds == pytest.approx(24) and video.frame_rate == 1
    assert brightness(video.frames([0.0, 9.5, 12.0, 13.0, 23.9])) == [0, 9, 12, 13, 23]


def test_pure_video_tasks_are_well_formed_and_depend_on_the_id_alone(tmp_path):
    frame_folder(tmp_path)
    records = [{"id": str(i), "video": "clip", "fps": 10} for i in range(60)]
    source = source_of(tmp_path, "video_frames", *records)
    for index in range(60):
        sample, again = source.sample(index), source.sample(index + 60)
        check_conversation(sample)
        assert sample.turns == again.turns
        assert [image.key() for image in sample.images] == [image.key() for image in again.images]


def tasks_of(tmp_path, fps: float = 10.0) -> list[tuple[str, str, list[int], list[int]]]:
    """Request, response, frames shown and frames to draw of 100 samples of a video of 20 frames."""
    frame_folder(tmp_path)
    records = [{"id": str(i), "video": "clip", "fps": fps} for i in range(100)]
    source = source_of(tmp_path, "video_frames", *records)
    tasks = []
    for index in range(100):
        sample = source.sample(index)
        prompt, response = (turn.text for turn in sample.turns)
        numbers = [int(image.name[-8:-4]) for image in sample.images]
        given = prompt.count("<image>")
        tasks.append((prompt.replace("<image>", ""), response, numbers[:given], numbers[given:]))
    return tasks


def test_every_task_of_pure_video_draws_what_it_asks_for(tmp_path):
    seen = Counter()
    for prompt, _, given, drawn in tasks_of(tmp_path):
        film = sorted({*given, *drawn})
        task = next((name for name, requests in REQUESTS.items() if prompt.endswith(requests)), "")
        seen[task] += 1
        assert task == "step" or drawn == sorted(drawn)
        if task == "next":
            assert given + drawn == film and 1 <= len(drawn) <= 3
        elif task == "following":
            assert given + drawn == film and len(given) == 1
        elif task == "split":
            assert given + drawn == film and len(given) - len(drawn) in (0, 1)
        elif task == "middle":
            assert given == [film[0], film[-1]] and drawn == film[1:-1]
        elif task == "alternating":
            assert given == film[::2] and drawn == film[1::2] and len(film) % 2
        elif task == "reverse":
            assert given == drawn[::-1] == film[::-1]
        elif task == "reorder":
            assert sorted(given) == drawn == film and given != drawn
        else:
            assert task == "step" and given == film and not drawn
    assert set(seen) == set(REQUESTS)


def test_prompts_of_pure_video_say_how_far_apart_the_frames_are(tmp_path):
    for fps in (10.0, 1.0):
        folder = tmp_path / str(fps)
        folder.mkdir()
        for prompt, response, given, drawn in tasks_of(folder, fps):
            film = sorted({*given, *drawn})
            where = response if not drawn else prompt
            pattern = r"About ([\d.]+) seconds" if not drawn else r"each ([\d.]+) seconds apart"
            step = float(re.search(pattern, where)[1])
            assert drawn or "apart:" not in prompt  # it must not tell what it asks for
            for number, frame in enumerate(film):  # two digits are said, frames are whole
                assert abs(frame / fps - number * step) <= 0.05 * number * step + 1.01 / fps


def test_other_seeds_choose_other_tasks(tmp_path):
    frame_folder(tmp_path)
    records = [{"id": str(i), "video": "clip", "fps": 10} for i in range(20)]
    path = write_lines(tmp_path / "data.jsonl", *records)
    config = DataConfig(family="video_frames", path=str(path), shuffle=False)
    one, other = (open_source(config, seed) for seed in (0, 1))
    assert [one.sample(i).turns for i in range(20)] != [other.sample(i).turns for i in range(20)]


def cause(source, index=0) -> str:
    with pytest.raises(SampleError) as caught:
        for image in source.sample(index).images:
            opened(image)
    return caught.value.cause


def test_bad_videos_are_counted_by_cause(tmp_path):
    write_video(tmp_path / "big.mp4", size=128)
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "0.png").write_bytes(image_bytes())
    names = ("big.mp4", "half.mp4", "text.mp4", "list.m3u8", "empty", "gone.mp4", "../x.mp4")
    records = [{"video": name} for name in (*names, "short")]
    records += [{"video": 3}, {"video": "whole.mp4", "fps": "fast"}]
    records += [{"video": "short", "fps": rate} for rate in (0, 1e-320, 10**400, True)]
    source = source_of(tmp_path, "video_frames", *records, max_pixels=10_000)
    assert [cause(source, i) for i in range(14)] == [
        "image too large", "corrupt video", "corrupt video", "corrupt video", "missing video",
        "missing video", "image outside its root", "video too short", "malformed record",
        *["malformed record"] * 5,
    ]  # fmt: skip


def test_the_name_decides_how_a_file_is_read_not_its_content(tmp_path):
    """What guesses the format may take a file for a playlist, which names other files."""
    write_video(tmp_path / "film.mkv")
    (tmp_path / "film.mkv").rename(tmp_path / "film.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n" + str(tmp_path / "film.mp4"))
    source = source_of(tmp_path, "video_frames", {"video": "film.mp4"}, {"video": "list.mp4"})
    assert cause(source, 0) == cause(source, 1) == "corrupt video"


def test_without_pyav_files_are_refused_with_the_reason(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    source = source_of(tmp_path, "video_frames", {"video": "a.mp4"})
    with pytest.raises(UserError, match="a video file cannot be used.*av"):
        source.sample(0)
