"""One model, several threads: each gets what it would get alone, whatever the others do.

* Scenes, timestamps, waveforms that are resampled, streams and files, at once.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy
import soundfile
import torch


def test_threads_get_what_they_would_get_alone(tmp_path, model, minute):
    clips = [minute[7000 * number :][: 9000 + 6000 * number] for number in range(6)]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 22050)

    def stream(number):
        return torch.cat([embeddings for embeddings, _ in model.embed_stream(clips[number].split(3000))])

    def files(number):
        paths = [tmp_path / f"{n}.wav" for n in range(number + 1)]
        return torch.from_numpy(
            numpy.stack([file.embeddings[0] for file in sorted(model.embed_files(paths), key=by_path)])
        )

    def by_path(file):
        return file.path

    work = [
        lambda number: model.scenes(clips[number][None]),
        lambda number: model.timestamps(clips[number][None])[0],
        lambda number: model.embed(clips[number], 22050),
        stream,
        files,
    ]
    jobs = [(function, number) for number in range(len(clips)) for function in work]
    alone = [function(number) for function, number in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
