// From scores of windows to a judgement: the rules of wedefense_nb.use.predict, in the browser.

export const RATE = 16000;
export const SHORTEST = 0.1; // seconds that a network is asked about
export const SPEECH = 0.2; // share of a window that must be speech for it to count

/** First and last sample of windows that cover a recording, each half over the next: `plan_windows`. */
export function planWindows(total, size) {
  if (total <= size) { return [[0, total]]; }
  const n = 1 + Math.ceil(2 * (total - size) / size);
  return Array.from({ length: n }, (_, i) => {
    const first = Math.floor(i * (total - size) / (n - 1));
    return [first, first + size];
  });
}

/** LLR of a mean score over so many seconds: `Evidence.llr`. */
export function llrOf(score, seconds, about) {
  const n = Math.max(seconds / about.window, Math.min(1, seconds / about.shortest));
  return n / (1 + (n - 1) * about.rho) * (about.a * score + about.b);
}

/** What windows (first, last, score, speech share) say together. */
export function weigh(rows, about) {
  let counted = rows.filter((row) => row.speech >= SPEECH);
  if (counted.length === 0) { counted = rows; }
  let covered = 0;
  let until = 0;
  let sum = 0;
  for (const row of counted) {
    covered += row.last - Math.max(row.first, until);
    until = row.last;
    sum += row.score;
  }
  const windows = rows.map((row) => ({
    start: row.first / RATE, end: row.last / RATE, counted: counted.includes(row),
    llr: llrOf(row.score, (row.last - row.first) / RATE, about),
  }));
  const score = sum / counted.length;
  return { score, llr: llrOf(score, covered / RATE, about), windows };
}

/** Probability of real, for a prior of fakes. */
export const posterior = (llr, prior) => 1 / (1 + Math.exp(Math.log(prior) - Math.log(1 - prior) - llr));

/** LLR from which on a recording is called real: `task.bayes_threshold`. */
export const threshold = (prior, miss, fa) => Math.log(fa * prior) - Math.log(miss * (1 - prior));

/** An LLR in words; `words` are [limit, words] of rising limits, the last of which is null. */
export function inWords(llr, words) {
  const ratio = Math.exp(Math.min(Math.abs(llr), 700));
  const said = words.find(([limit]) => limit === null || ratio < limit)[1];
  return ratio < words[0][0] ? `it ${said}` : `it ${said} for ${llr > 0 ? 'a real voice' : 'a fake'}`;
}

export function inPercent(p) {
  const percent = 100 * p;
  if (percent < 0.01) { return 'under 0.01 %'; }
  if (percent > 99.99) { return 'over 99.99 %'; }
  const digits = percent >= 1 && percent <= 99 ? 0 : 2;
  return `${(Math.floor(percent * 10 ** digits + 0.5) / 10 ** digits).toFixed(digits)} %`;
}

export function signed(x, digits = 2) {
  const text = Math.abs(x).toFixed(digits);
  return Number(text) === 0 ? text : (x > 0 ? '+' : '\u2212') + text;
}

/** What an ONNX file says of itself: its metadata_props, which are field 14 of a ModelProto. */
export function metadataOf(bytes) {
  const text = new TextDecoder();
  const fields = function* (from, to) {
    let at = from;
    const number = () => {
      let value = 0;
      for (let shift = 0; ; shift += 7) {
        if (at >= to || shift > 63) { throw new Error('this is no ONNX file, or a damaged one'); }
        const byte = bytes[at++];
        value += (byte & 127) * 2 ** shift;
        if (byte < 128) { return value; }
      }
    };
    while (at < to) {
      const tag = number();
      const kind = tag % 8;
      if (![0, 1, 2, 5].includes(kind)) { throw new Error('this is no ONNX file, or a damaged one'); }
      const size = kind === 0 ? (number(), 0) : kind === 1 ? 8 : kind === 5 ? 4 : number();
      if (at + size > to) { throw new Error('this is no ONNX file, or a damaged one'); }
      yield [Math.floor(tag / 8), at, at + size];
      at += size;
    }
  };
  const found = {};
  for (const [field, from, to] of fields(0, bytes.length)) {
    if (field !== 14) { continue; }
    const pair = {};
    for (const [name, start, end] of fields(from, to)) { pair[name] = text.decode(bytes.subarray(start, end)); }
    found[pair[1]] = pair[2] ?? '';
  }
  return found;
}

/** The numbers of a calibrated detector's metadata; an Error says what another file lacks. */
export function detectorOf(bytes) {
  const found = metadataOf(bytes);
  if (!found.outputs) { throw new Error('this ONNX file was not written by wedefense-nb export'); }
  if (found.task !== 'detection') { throw new Error('this file holds a localizer; this page needs a detector'); }
  const numbers = {};
  for (const name of ['window', 'shortest', 'rho', 'a', 'b', 'shortest_input']) { numbers[name] = Number(found[name]); }
  if (!Object.values(numbers).every(Number.isFinite)) {
    throw new Error('this model is not calibrated, so its score is no likelihood ratio: calibrate and export it again');
  }
  return { ...found, ...numbers };
}
