// What there is to hear: speech, level, bandwidth as wedefense_nb.understanding.quality measures them; pictures.

import { RATE } from './judge.js';

const FRAME = 400;
const HOP = 160;
const SIZE = 1024; // of the Fourier transforms
const LAGS = [RATE / 400, RATE / 80]; // of pitches from 400 to 80 Hz
const TURNS = Float64Array.from({ length: SIZE / 2 }, (_, k) => Math.cos(2 * Math.PI * k / SIZE));
const SINES = Float64Array.from({ length: SIZE / 2 }, (_, k) => -Math.sin(2 * Math.PI * k / SIZE));
const HANN = Float64Array.from({ length: FRAME }, (_, n) => 0.5 - 0.5 * Math.cos(2 * Math.PI * n / (FRAME - 1)));
const PLACE = Uint16Array.from({ length: SIZE }, (_, n) => parseInt(n.toString(2).padStart(10, '0').split('').reverse()
  .join(''), 2));

/** Fourier transform in place, of arrays in the order of `PLACE`. */
function transform(re, im) {
  for (let half = 1; half < SIZE; half *= 2) {
    const step = SIZE / (2 * half);
    for (let from = 0; from < SIZE; from += 2 * half) {
      for (let k = 0; k < half; k++) {
        const a = from + k;
        const b = a + half;
        const c = TURNS[k * step];
        const s = SINES[k * step];
        const x = re[b] * c - im[b] * s;
        const y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

const re = new Float64Array(SIZE);
const im = new Float64Array(SIZE);

/** Power spectrum of a frame into `power` (SIZE), and its autocorrelation into `lags`. */
function analyse(frame, power, lags) {
  re.fill(0);
  im.fill(0);
  for (let n = 0; n < FRAME; n++) { re[PLACE[n]] = frame(n) * HANN[n]; }
  transform(re, im);
  for (let k = 0; k < SIZE; k++) { power[k] = re[k] * re[k] + im[k] * im[k]; }
  im.fill(0);
  for (let k = 0; k < SIZE; k++) { re[PLACE[k]] = power[k]; }
  transform(re, im);
  for (let k = 0; k <= LAGS[1]; k++) { lags[k] = re[k] / SIZE; }
}

const OF_WINDOW = new Float64Array(LAGS[1] + 1);
analyse(() => 1, new Float64Array(SIZE), OF_WINDOW);

function quantile(values, p) {
  const sorted = Float64Array.from(values).sort();
  const at = p * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** Level, voicing and speech of each 10 ms of a wave at 16 kHz, and the facts of all of it. */
export function listen(wave, tell = () => {}) {
  const n = Math.max(0, Math.floor((wave.length - FRAME) / HOP) + 1);
  const level = new Float32Array(n);
  const voicing = new Float32Array(n);
  const power = new Float64Array(SIZE);
  const lags = new Float64Array(LAGS[1] + 1);
  const spectrum = new Float64Array(SIZE / 2 + 1);
  for (let f = 0; f < n; f++) {
    const from = f * HOP;
    let sum = 0;
    for (let k = from; k < from + FRAME; k++) { sum += wave[k] * wave[k]; }
    level[f] = 10 * Math.log10(Math.max(sum / FRAME, 1e-12));
    analyse((k) => wave[from + k], power, lags);
    let most = -Infinity;
    const none = Math.max(lags[0] / OF_WINDOW[0], 1e-9);
    for (let k = LAGS[0]; k <= LAGS[1]; k++) { most = Math.max(most, lags[k] / OF_WINDOW[k] / none); }
    voicing[f] = Math.min(most, 1);
    for (let k = 0; k < spectrum.length; k++) { spectrum[k] += power[k]; }
    if (f % 6000 === 5999) { tell(f / n); }
  }
  const loud = n ? quantile(level, 0.95) : 0;
  const active = level.map((x) => Number(x > Math.fround(Math.max(loud - 30, -75))));
  const voiced = voicing.map((x, f) => Number(active[f] && x > 0.5));
  const before = new Uint32Array(n + 1); // how many were voiced before a frame
  const speech = new Uint32Array(n + 1); // how many were speech
  for (let f = 0; f < n; f++) { before[f + 1] = before[f] + voiced[f]; }
  for (let f = 0; f < n; f++) {
    const near = n > 41 ? before[Math.min(n, f + 21)] - before[Math.max(0, f - 20)] : before[n];
    speech[f + 1] = speech[f] + Number(active[f] && near > 0);
  }
  let peak = 0;
  for (const x of wave) { peak = Math.max(peak, Math.abs(x)); }
  let mean = 0;
  let count = 0;
  for (let f = 0; f < n; f++) { if (active[f]) { mean += 10 ** (level[f] / 10); count++; } }
  const largest = spectrum.reduce((a, b) => Math.max(a, b), 0);
  const facts = {
    duration: wave.length / RATE,
    speech: speech[n] * HOP / RATE,
    level: count ? 10 * Math.log10(mean / count) : -120,
    peak: 20 * Math.log10(Math.max(peak, 1e-6)),
    bandwidth: largest > 0 ? spectrum.findLastIndex((x) => x > 1e-6 * largest) * RATE / SIZE : 0,
  };
  facts.snr = facts.level - (n ? quantile(level, 0.1) : -120);
  facts.silent = facts.level <= -75 || facts.peak <= -90;
  return { facts, share: (first, last) => shareOf(speech, first, last) };
}

/** Share of speech between two samples. */
function shareOf(speech, first, last) {
  const [from, to] = [first, last].map((at) => Math.min(Math.floor(at / HOP), speech.length - 1));
  return (speech[to] - speech[from]) / Math.max(1, to - from);
}

/** Mean of the channels. */
export function mixed(channels) {
  return Float32Array.from(channels[0], (_, t) => channels.reduce((sum, c) => sum + c[t], 0) / channels.length);
}

/** What is beyond full scale is cut off. */
export const clipped = (wave) => wave.map((x) => Math.max(-1, Math.min(1, x)));

/** Bessel function of the first kind, modified, of order 0. */
function bessel(x) {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > 1e-17 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

const WIDTH = 64; // zero crossings at each side of the filter: `data.audio.resample`
const ROLLOFF = 0.9476;
const BETA = 14.77;

/** A wave at 16 kHz, by a windowed sinc: the same numbers as of `data.audio.resample`. */
export function resampled(wave, rate, tell = () => {}) {
  if (rate === RATE) { return wave; }
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  const up = RATE / divisor(RATE, rate);
  const down = rate / divisor(RATE, rate);
  const base = Math.min(up, down) * ROLLOFF / down; // of the file's rate
  const reach = Math.ceil(WIDTH / base);
  const filters = Array.from({ length: up }, (_, phase) => { // taps from `first` on, for every up-th sample
    const middle = phase * down / up;
    const first = Math.floor(middle) - reach;
    const taps = Float64Array.from({ length: 2 * reach + 2 }, (_, k) => {
      const t = Math.max(-WIDTH, Math.min(WIDTH, (first + k - middle) * base));
      const window = bessel(BETA * Math.sqrt(1 - (t / WIDTH) ** 2)) / bessel(BETA);
      return base * window * (t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t));
    });
    return { first, taps };
  });
  const out = new Float32Array(Math.ceil(wave.length * up / down));
  for (let n = 0; n < out.length; n++) {
    const { first, taps } = filters[n % up];
    const from = Math.floor(n / up) * down + first;
    const last = Math.min(taps.length, wave.length - from);
    let sum = 0;
    for (let k = Math.max(0, -from); k < last; k++) { sum += taps[k] * wave[from + k]; }
    out[n] = sum;
    if (n % 500000 === 499999) { tell(n / out.length); }
  }
  return out;
}

/** The rate that a file says it has; 48 kHz where it is not known: what it is decoded at. */
export function rateOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = (at, n) => String.fromCharCode(...bytes.subarray(at, at + n));
  const find = (word, to) => {
    const end = Math.min(to, bytes.length) - word.length;
    for (let at = 0; at <= end; at++) {
      if (bytes[at] === word.charCodeAt(0) && text(at, word.length) === word) { return at; }
    }
    return -1;
  };
  const at = (place) => (place >= 0 && place + 4 <= bytes.length ? place : null);
  let rate = null;
  if (text(0, 4) === 'RIFF') {
    const place = at(find('fmt ', 1e5) + 12);
    rate = place && view.getUint32(place, true);
  } else if (text(0, 4) === 'fLaC') {
    rate = at(18) && view.getUint32(18) >>> 12;
  } else if (text(0, 4) === 'OggS') {
    const place = at(find('\x01vorbis', 1e4) + 12);
    rate = find('\x01vorbis', 1e4) >= 0 && place ? view.getUint32(place, true) : 48000;
  } else if (text(4, 4) === 'ftyp') {
    const place = find('mp4a', bytes.length);
    rate = place >= 0 && at(place + 28) ? view.getUint16(place + 28) : null;
  } else {
    const tag = text(0, 3) === 'ID3' ? [6, 7, 8, 9].reduce((size, k) => size * 128 + bytes[k], 0) + 10 : 0;
    if (at(tag) !== null && view.getUint16(tag) >> 5 === 2047) {
      const version = [4, null, 2, 1][bytes[tag + 1] >> 3 & 3]; // by which the rate is divided
      rate = version && [44100, 48000, 32000, null][bytes[tag + 2] >> 2 & 3] / version;
    }
  }
  return rate >= 3000 && rate <= 192000 ? rate : 48000;
}

/** A wave as strokes in a box of 1000 × 100. */
export function strokes(wave, most = 800) {
  const n = Math.min(most, wave.length);
  const low = new Float32Array(n);
  const high = new Float32Array(n);
  let peak = 1e-4;
  for (let i = 0; i < n; i++) {
    const part = wave.subarray(Math.floor(i * wave.length / n), Math.floor((i + 1) * wave.length / n));
    low[i] = part.reduce((a, b) => Math.min(a, b), Infinity);
    high[i] = part.reduce((a, b) => Math.max(a, b), -Infinity);
    peak = Math.max(peak, -low[i], high[i]);
  }
  const line = (i) => `M${((i + 0.5) * 1000 / n).toFixed(1)} ${(50 - 48 * high[i] / peak).toFixed(1)}` +
    `V${(50.5 - 48 * low[i] / peak).toFixed(1)}`;
  return Array.from({ length: n }, (_, i) => line(i)).join('');
}

/** A wave at 16 kHz as a WAV file of 16 bits. */
export function asWav(wave) {
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, 'RIFF');
  view.setUint32(4, 36 + 2 * wave.length, true);
  word(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, 'data');
  view.setUint32(40, 2 * wave.length, true);
  for (let t = 0; t < wave.length; t++) {
    view.setInt16(44 + 2 * t, Math.max(-32768, Math.min(32767, Math.round(32768 * wave[t]))), true);
  }
  return new Blob([view], { type: 'audio/wav' });
}
