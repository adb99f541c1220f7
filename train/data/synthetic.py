"""Sound made on the fly, for a domain `synthetic` without files or licences: a function of the random generator alone.

A crop is a bed of filtered noise under one to five events, each shaped by an envelope: tones with harmonic or stretched
partials, glides and vibrato; frequency modulation; plucked strings; struck modes; noise bursts; pulse trains. The mix
goes through a random filter and, now and then, reverberation.
"""

from collections.abc import Callable

import numpy as np

LOWEST_HZ, HIGHEST_HZ = 30.0, 4000.0  # of fundamentals
SHORTEST_S = 0.02  # of an event
TABLE = 2048  # samples of one period, more than twice the partials of any tone
MOST_EVENTS = 5
STEPS = 24  # of a filter's curve in an octave
REVERBERANT_SHARE = 0.4  # of crops
PEAK_DB = (-30.0, -1.0)  # of a crop, relative to full scale


class SyntheticSound:
    """Draws crops of `samples` samples at `sample_rate` Hz; a source of crops, as `CropRule` is."""

    def __init__(self, samples: int, sample_rate: int):
        self._samples, self._rate = samples, sample_rate
        self._fft = _fast_length(samples + sample_rate // 2)  # room for half a second of reverberation
        octaves = np.log2(np.maximum(np.fft.rfftfreq(self._fft, 1 / sample_rate), LOWEST_HZ) / LOWEST_HZ)
        self._octaves = np.arange(0, octaves[-1] + 1 / STEPS, 1 / STEPS)
        self._step_of = (octaves * STEPS).astype(np.int64)  # of each frequency of the transform

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return int16 [samples]; the same generator state gives the same crop."""
        events = np.zeros(self._samples, dtype=np.float32)
        for _ in range(rng.integers(1, MOST_EVENTS + 1)):
            self._add_event(events, rng)
        spectrum = np.fft.rfft(events, self._fft) + self._noise(rng) * _gain(rng, -70, -15)
        mix = np.fft.irfft(spectrum * self._room(rng), self._fft)[: self._samples]
        scale = _gain(rng, *PEAK_DB) * 32767 / max(float(np.abs(mix).max()), 1e-9)
        return np.rint(mix * np.float32(scale)).astype(np.int16)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """Noise of a random colour: float32 [samples] of deviation 1."""
        return np.fft.irfft(self._noise(rng), self._fft)[: self._samples].astype(np.float32)

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        """The spectrum of noise of a random colour, of deviation 1 in time."""
        parts = rng.standard_normal((len(self._step_of), 2), dtype=np.float32)
        spectrum = parts.view(np.complex64)[:, 0] * self._colour(rng)
        power = float(np.vdot(spectrum, spectrum).real) * 2
        return spectrum * np.float32(self._fft / max(power, 1e-20) ** 0.5)

    def _add_event(self, events: np.ndarray, rng: np.random.Generator) -> None:
        duration = int(_log_uniform(rng, SHORTEST_S, len(events) / self._rate) * self._rate)
        start = int(rng.integers(len(events) - duration + 1))
        event = EVENTS[rng.integers(len(EVENTS))](rng, duration, self._rate)
        gain = _gain(rng, -24, 0) / max(float(np.abs(event).max()), 1e-9)
        events[start : start + duration] += event * np.float32(gain)

    def _colour(self, rng: np.random.Generator) -> np.ndarray:
        """Amplitude over frequency: a slope of -12 to 3 dB an octave, and up to three peaks or notches."""
        decibels = rng.uniform(-12, 3) * (self._octaves - 5)
        for _ in range(rng.integers(0, 4)):
            centre, width = rng.uniform(0, self._octaves[-1]), _log_uniform(rng, 0.1, 2.0)
            decibels += rng.uniform(-25, 25) * np.exp(-np.square((self._octaves - centre) / width))
        return (10.0 ** (np.clip(decibels, -90, 60) / 20)).astype(np.float32)[self._step_of]

    def _room(self, rng: np.random.Generator) -> np.ndarray:
        """The response of a random filter and, at times, of a room: a decaying noise after the direct sound."""
        colour = self._colour(rng)
        if rng.random() > REVERBERANT_SHARE:
            return colour
        tail = rng.standard_normal(self._fft - self._samples, dtype=np.float32)
        tail *= _decay(len(tail), self._rate, _log_uniform(rng, 0.05, 2.0))
        tail *= np.float32(_gain(rng, -20, 0) / np.sqrt(np.square(tail).sum()))
        tail[0] = 1.0
        return colour * np.fft.rfft(tail, self._fft)


Event = Callable[[np.random.Generator, int, int], np.ndarray]  # generator, samples, rate -> float32 [samples]


def tone(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Harmonics of a gliding, vibrating fundamental, read from one period: all partials at the cost of one."""
    f0 = _fundamental(rng, samples, rate)
    count = int(np.clip(0.45 * rate / f0.max(), 1, TABLE // 4))
    number = np.arange(1, count + 1)
    amplitude = number ** -rng.uniform(0.3, 3.0)
    amplitude[number % 2 == 0] *= rng.choice([1.0, 1.0, 0.1])  # a clarinet's, or a square wave's
    spectrum = np.zeros(TABLE // 2 + 1, dtype=np.complex64)
    spectrum[1 : count + 1] = amplitude * np.exp(2j * np.pi * rng.random(count))
    period = np.fft.irfft(spectrum, TABLE).astype(np.float32)
    place = np.cumsum(f0 / rate) * TABLE
    return period[place.astype(np.int64) % TABLE] * envelope(rng, samples, rate)


def stretched_tone(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Up to eight partials that are no multiples of a fundamental."""
    f0 = _log_uniform(rng, LOWEST_HZ, HIGHEST_HZ)
    number = np.arange(1, rng.integers(2, 9), dtype=np.float32)
    frequencies = f0 * number ** rng.uniform(0.8, 1.3) * rng.uniform(0.97, 1.03, len(number))
    levels = number ** -rng.uniform(0.0, 2.0)
    return _sinusoids(rng, frequencies, levels, samples, rate) * envelope(rng, samples, rate)


def modulated(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Frequency modulation with an index that decays."""
    carrier = _fundamental(rng, samples, rate)
    ratio, index = rng.choice([0.5, 1.0, 1.41, 2.0, 3.5, 7.0]), _log_uniform(rng, 0.3, 8.0)
    phase = np.cumsum(carrier) * np.float32(2 * np.pi / rate)
    depth = np.float32(index) * _decay(samples, rate, _log_uniform(rng, 0.05, 3.0))
    wave = np.sin((phase + depth * np.sin(phase * ratio)).astype(np.float32))
    return wave * envelope(rng, samples, rate)


def pluck(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A string: harmonics that decay the faster the higher they are."""
    f0 = _log_uniform(rng, 60.0, 1500.0)
    number = np.arange(1, int(np.clip(0.45 * rate / f0, 1, 12)) + 1, dtype=np.float32)
    frequencies = f0 * number * np.sqrt(1 + _log_uniform(rng, 1e-6, 1e-3) * number**2)  # a stiff string's
    place = rng.uniform(0.05, 0.5)
    levels = np.abs(np.sin(np.pi * number * place)) / number
    seconds = _log_uniform(rng, 0.1, 3.0) / (1 + rng.uniform(0.1, 1.0) * (number - 1))
    return _sinusoids(rng, frequencies, levels, samples, rate, seconds)


def struck(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Modes of a struck bar, plate or drum, each with a decay of its own, after a click."""
    count = rng.integers(3, 9)
    frequencies = _log_uniform(rng, 60.0, 2000.0) * np.sort(rng.uniform(1, 8, count))
    seconds = _log_uniform(rng, 0.01, 2.0) * rng.uniform(0.3, 1.0, count)
    wave = _sinusoids(rng, frequencies, rng.uniform(0.1, 1.0, count), samples, rate, seconds)
    click = min(samples, int(0.003 * rate))
    wave[:click] += np.float32(rng.uniform(0, 2)) * rng.standard_normal(click, dtype=np.float32)
    return wave


def burst(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Noise in a band that moves: white noise times a gliding sinusoid, smoothed before."""
    width = int(_log_uniform(rng, 1, 64))
    noise = rng.standard_normal(samples + width, dtype=np.float32).cumsum()
    low = noise[width:] - noise[:-width]  # a moving sum: a low-pass of about rate / width
    if rng.random() < 0.5:
        low *= np.sin(np.cumsum(_fundamental(rng, samples, rate)) * np.float32(2 * np.pi / rate))
    return low * envelope(rng, samples, rate)


def pulses(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Clicks at a regular or an uneven rate, each with a short ring."""
    gaps = _log_uniform(rng, 0.002, 0.3) * rate * rng.lognormal(0, rng.choice([0.0, 0.1, 0.7]), 200)
    places = np.cumsum(np.maximum(gaps, 8)).astype(np.int64)
    train = np.zeros(samples, dtype=np.float32)
    places = places[places < samples]
    train[places] = rng.uniform(0.3, 1.0, len(places))
    train[0] = 1.0
    ring = min(256, samples)
    frequencies, seconds = _log_uniform(rng, 200.0, 0.4 * rate), _log_uniform(rng, 0.0005, 0.005)
    shape = _sinusoids(rng, np.array([frequencies]), np.array([1.0]), ring, rate, np.array([seconds]))
    return np.convolve(train, shape)[:samples] * envelope(rng, samples, rate)


EVENTS: tuple[Event, ...] = (tone, tone, stretched_tone, modulated, pluck, struck, burst, pulses)


def envelope(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """Attack, decay, sustain, release: float32 [samples] that begins and ends at 0, at times with tremolo."""
    shares = rng.dirichlet([0.5, 0.7, 2.0, 1.0])
    attack, decay, _, release = shares * samples
    sustain = rng.uniform(0.1, 1.0)
    times = [0, max(attack, 0.002 * rate), attack + decay + 0.003 * rate, samples - max(release, 0.003 * rate), samples]
    shape = np.interp(np.arange(samples), np.maximum.accumulate(times), [0, 1, sustain, sustain, 0]).astype(np.float32)
    if rng.random() < 0.2:
        shape *= 1 + np.float32(rng.uniform(0.1, 0.9)) * _slow_sine(rng, samples, rate, 2.0, 30.0)
    return shape


def _fundamental(rng: np.random.Generator, samples: int, rate: int) -> np.ndarray:
    """A fundamental over time in Hz, float32 [samples]: steady, gliding up to two octaves, or vibrating."""
    first = _log_uniform(rng, LOWEST_HZ, HIGHEST_HZ)
    octaves = np.zeros(1, dtype=np.float32)
    if rng.random() < 0.4:
        octaves = np.linspace(0, rng.uniform(-2, 2), samples, dtype=np.float32) ** rng.choice([1, 3])
    if rng.random() < 0.4:
        octaves = octaves + np.float32(_log_uniform(rng, 0.005, 0.15)) * _slow_sine(rng, samples, rate, 3.0, 9.0)
    f0 = np.clip(np.float32(first) * np.exp2(octaves), LOWEST_HZ, min(HIGHEST_HZ, 0.45 * rate))
    return np.broadcast_to(f0, samples).astype(np.float32)


def _slow_sine(rng: np.random.Generator, samples: int, rate: int, lowest_hz: float, highest_hz: float) -> np.ndarray:
    step = np.float32(2 * np.pi * _log_uniform(rng, lowest_hz, highest_hz) / rate)
    return np.sin(np.arange(samples, dtype=np.float32) * step + np.float32(rng.uniform(0, 6.28)))


def _sinusoids(rng, frequencies, levels, samples: int, rate: int, seconds=None) -> np.ndarray:
    """A sum of sinusoids, those above the band left out, each decaying by 60 dB in its `seconds`: float32 [samples]."""
    wave, time = np.zeros(samples, dtype=np.float32), np.arange(samples, dtype=np.float32)
    for index, frequency in enumerate(frequencies):
        if frequency > 0.48 * rate:
            continue
        length = samples if seconds is None else min(samples, int(seconds[index] * rate) + 1)  # then it is inaudible
        phase = time[:length] * np.float32(2 * np.pi * frequency / rate)
        partial = np.sin(phase + np.float32(rng.uniform(0, 6.28))) * np.float32(levels[index])
        if seconds is not None:
            partial *= _decay(length, rate, float(seconds[index]))
        wave[:length] += partial
    return wave


def _decay(samples: int, rate: int, seconds: float) -> np.ndarray:
    """An exponential that falls by 60 dB in `seconds`."""
    return np.exp(np.arange(samples, dtype=np.float32) * np.float32(-6.9 / (seconds * rate)))


def _gain(rng: np.random.Generator, low_db: float, high_db: float) -> float:
    return 10 ** (rng.uniform(low_db, high_db) / 20)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _fast_length(least: int) -> int:
    """The smallest length of at least `least` whose only prime factors are 2, 3 and 5."""
    lengths = (2**i * 3**j * 5**k for i in range(18) for j in range(6) for k in range(4))
    return min(length for length in lengths if length >= least and length % 2 == 0)
