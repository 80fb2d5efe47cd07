// The page: takes a recording, has it judged by worker.js, shows the answer, and keeps nothing.

import { RATE, SHORTEST, detectorOf, inPercent, inWords, posterior, signed, threshold } from './judge.js';
import { asWav, mixed, rateOf, strokes } from './sound.js';

const MOST_BYTES = 200e6;
const MOST_SECONDS = 3600;
const EXACT_SECONDS = 600; // longer ones are resampled by the browser, which needs less memory
const one = (name) => document.querySelector(name);
const settings = await (await fetch('settings.json')).json();

// What the page shows while it works

function tell(problem) {
  one('#problem').hidden = !problem;
  one('#problem').textContent = problem;
}

function progress(doing, share) {
  one('#busy').hidden = doing === '';
  if (one('#doing').textContent !== doing) { one('#doing').textContent = doing; }
  one('#progress').value = share;
}

function row(body, name, value) {
  const line = body.insertRow();
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = name;
  line.append(head);
  line.insertCell().textContent = value;
}

function list(name, texts) {
  const lines = texts.map((text) => {
    const line = document.createElement('li');
    line.textContent = text;
    return line;
  });
  one(name).replaceChildren(...lines);
}

/** A file name as it may be shown: without what turns a line around or cannot be seen. */
const clean = (name) => name.replace(/[\p{C}\u2028\u2029]/gu, '\uFFFD').slice(0, 200);

// The model

let model = null; // its bytes, what it says of itself, and where it comes from
let runtime = null; // the bytes of onnxruntime
let worker = null;

/** The bytes of a file of this site; `size` is what is expected. */
async function bytesOf(name, size, doing) {
  const reply = await fetch(name);
  if (!reply.ok) { throw new Error(`${name} is missing from this site (${reply.status})`); }
  const parts = [];
  let got = 0;
  for (const reader = reply.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) { break; }
    parts.push(value);
    got += value.length;
    progress(`${doing} (${(size / 1e6).toFixed(0)} MB, once)`, Math.min(1, got / size));
  }
  return await new Blob(parts).arrayBuffer();
}

async function hash(bytes) {
  if (!window.crypto || !crypto.subtle) { return 'not computed: the page did not come over https'; }
  const found = await crypto.subtle.digest('SHA-256', bytes);
  return Array.from(new Uint8Array(found), (x) => x.toString(16).padStart(2, '0')).join('');
}

/** A worker with runtime and model in it. It is made from a blob, so that the page's policy holds in it too. */
async function ready() {
  if (runtime === null) { runtime = await bytesOf('ort-wasm-simd-threaded.wasm', settings.runtime_bytes, 'Loading the runtime'); }
  if (model === null) {
    const bytes = await bytesOf('model.onnx', settings.model_bytes, 'Loading the detector');
    model = { bytes, about: detectorOf(new Uint8Array(bytes)), note: settings.note, card: settings.card, name: '' };
  }
  if (worker !== null) { return; }
  progress('Starting the detector', 1);
  const first = `import ${JSON.stringify(new URL('worker.js', location.href).href)};`;
  const address = URL.createObjectURL(new Blob([first], { type: 'text/javascript' }));
  worker = new Worker(address, { type: 'module' });
  await heard(worker, 'ready');
  URL.revokeObjectURL(address);
  worker.postMessage({ kind: 'load', runtime, model: model.bytes, about: model.about });
  await heard(worker, 'loaded');
}

/** Waits for a message of the worker; all that come before are given to `each`. */
function heard(from, kind, each = () => {}) {
  return new Promise((resolve, reject) => {
    from.onmessage = ({ data }) => {
      if (data.kind === kind) { resolve(data); }
      else if (data.kind === 'failed') { reject(new Error(data.said)); }
      else { each(data); }
    };
    from.onerror = (event) => reject(new Error(event.message || 'the detector could not be started in this browser'));
    from.stopped = () => reject(new Error('stopped'));
  });
}

function dismiss() {
  if (worker === null) { return; }
  worker.terminate();
  worker.stopped?.();
  worker = null;
}

// A recording

let turn = 0; // of what was asked for last: what comes later for an earlier one is dropped
let shown = null; // what is shown
let address = ''; // of what is played

/** Seconds of a file as the browser's player sees them; null if it does not know. */
function lengthOf(file) {
  return new Promise((resolve) => {
    const player = new Audio();
    const source = URL.createObjectURL(file);
    const end = (seconds) => { clearTimeout(late); URL.revokeObjectURL(source); resolve(seconds); };
    const late = setTimeout(() => end(null), 3000);
    player.preload = 'metadata';
    player.onloadedmetadata = () => end(Number.isFinite(player.duration) ? player.duration : null);
    player.onerror = () => end(null);
    player.src = source;
  });
}

const TOO_LONG = 'is longer than one hour: choose a shorter part of it';

async function waveOf(file) {
  if (file.size === 0) { throw new Error('is empty: choose another file'); }
  if (file.size > MOST_BYTES) { throw new Error(`is too large (${(file.size / 1e6).toFixed(0)} MB): at most 200 MB`); }
  const length = await lengthOf(file);
  if (length > MOST_SECONDS) { throw new Error(TOO_LONG); }
  const bytes = await file.arrayBuffer();
  const sha256 = await hash(bytes);
  const rate = (length ?? Infinity) <= EXACT_SECONDS ? rateOf(new Uint8Array(bytes)) : RATE;
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    throw new Error('is no recording that this browser can read, or damaged: choose a WAV, FLAC, MP3, M4A or Ogg file');
  }
  if (decoded.duration > MOST_SECONDS) { throw new Error(TOO_LONG); }
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, c) => decoded.getChannelData(c));
  return { wave: mixed(channels), rate, sha256, channels: channels.length };
}

async function judge(name, source) {
  const mine = ++turn;
  const current = () => mine === turn;
  dismissIfBusy();
  one('#answer').hidden = true;
  one('#sound').pause();
  tell('');
  progress('Reading the recording', 0);
  try {
    const recording = await source();
    if (!current()) { return; }
    busy = true;
    await ready();
    if (!current()) { return; }
    let listened = null;
    worker.postMessage({ kind: 'judge', wave: recording.wave, rate: recording.rate }, [recording.wave.buffer]);
    const found = await heard(worker, 'judged', (data) => {
      if (data.kind === 'heard') { listened = data; }
      if (data.kind === 'listened') { progress('Listening', data.done); }
      if (data.kind === 'window') { progress(`Judging window ${data.done} of ${data.of}`, data.done / data.of); }
    });
    if (!current()) { return; }
    busy = false;
    show(name, { ...recording, ...listened }, found);
  } catch (error) {
    if (!current()) { return; }
    busy = false;
    dismiss();
    tell(`${clean(name)}: ${error.message}.`);
  }
  progress('', 0);
}

let busy = false;
function dismissIfBusy() {
  if (busy) { dismiss(); }
  busy = false;
}

one('#stop').addEventListener('click', () => {
  turn++;
  dismissIfBusy();
  progress('', 0);
  tell('Stopped.');
});

// The answer

const sliders = ['prior', 'miss', 'fa'].map((name) => one(`#${name}`));
const steps = [settings.priors, settings.costs, settings.costs];
sliders.forEach((input, n) => {
  input.max = steps[n].length - 1;
  input.value = steps[n].indexOf(n === 0 ? 0.5 : 1);
  input.addEventListener('input', weighAgain);
});

function reasonsAgainst(facts) {
  if (facts.duration < SHORTEST) { return [`it is only ${facts.duration.toFixed(2)} s long`]; }
  return facts.silent ? ['it is silent'] : [];
}

/** Verdict and probabilities under the assumptions that the sliders stand for. */
function weighAgain() {
  const [prior, miss, fa] = sliders.map((input, n) => steps[n][Number(input.value)]);
  const texts = [`${Number((100 * prior).toPrecision(6))} %`, String(miss), String(fa)];
  sliders.forEach((input, n) => {
    input.setAttribute('aria-valuetext', texts[n]);
    one(`output[for=${input.id}]`).textContent = texts[n];
  });
  if (shown === null || shown.reasons.length) { return; }
  const from = threshold(prior, miss, fa);
  const real = shown.llr >= from;
  const p = posterior(shown.llr, prior);
  one('#verdict').dataset.decision = real ? 'bonafide' : 'spoof';
  one('#verdict').dataset.llr = shown.llr;
  const word = real ? 'REAL VOICE (bona fide)' : 'FAKE (spoof)';
  if (one('#word').textContent !== word) { one('#word').textContent = word; }
  one('#assumed').textContent = `If ${texts[0]} of such recordings were fake, a rejected real voice cost ${texts[1]} ` +
    `and an accepted fake ${texts[2]}, then it is called real from an LLR of ${signed(from)} on.`;
  const odd = real === p >= 0.5 ? '' : real ? 'It is more likely fake than real, and yet called real: the costs ask for it.'
    : 'It is more likely real than fake, and yet called fake: the costs ask for it.';
  one('#though').textContent = odd;
  one('#p-real').textContent = inPercent(p);
  one('#p-fake').textContent = inPercent(1 - p);
  one('#bar-fake').setAttribute('width', `${100 * (1 - p)}%`);
  const lowest = shown.windows.filter((w) => w.counted).reduce((a, b) => (a.llr <= b.llr ? a : b));
  const caveats = [model.note, 'The model knows only fakes like those it was trained on.',
    'This page gives no interval, and it does not notice recordings unlike those that the model was trained on; ' +
    'the program wedefense-nb detect does both.'].filter((text) => text);
  if (shown.seconds > EXACT_SECONDS) {
    caveats.push('It is longer than 10 minutes, so the browser resampled it: the LLR may differ by a few tenths.');
  }
  if (real && shown.windows.length > 1 && lowest.llr < -Math.log(10)) {
    const place = `${lowest.start.toFixed(1)} to ${lowest.end.toFixed(1)} s`;
    caveats.unshift(`${place} sounds fake by itself (LLR ${signed(lowest.llr, 1)}); part of it may be.`);
  }
  list('#caveats', caveats);
}

function show(name, recording, found) {
  const { wave, facts, sha256, channels } = recording;
  const seconds = wave.length / RATE;
  shown = { ...found, reasons: reasonsAgainst(facts), seconds };
  const judged = shown.reasons.length === 0;
  one('#name').textContent = clean(name);
  one('#weighed').hidden = one('#assumptions').hidden = one('#course').hidden = !judged;
  list('#reasons', judged ? [] : [...shown.reasons, 'This is no sign that it is fake, and none that it is real.']);
  if (judged) {
    const often = Math.exp(Math.min(Math.abs(shown.llr), 700));
    const sides = shown.llr > 0 ? ['real', 'fake'] : ['fake', 'real'];
    const ratio = often < 10 ? often.toFixed(1) : often < 1e6 ? Math.round(often).toLocaleString('en') : 'over a million';
    one('#evidence').textContent = `What was heard is ${ratio} times as likely from a ${sides[0]} voice as from a ` +
      `${sides[1]} one. In the words of forensic laboratories, ${inWords(shown.llr, settings.words)}: ` +
      `LLR ${signed(shown.llr)}.`;
    weighAgain();
    draw(shown.windows, seconds);
  } else {
    one('#verdict').dataset.decision = 'cannot say';
    delete one('#verdict').dataset.llr;
    one('#word').textContent = 'CANNOT BE JUDGED by this model';
    list('#caveats', [model.note].filter((text) => text));
    one('#table').hidden = true;
    one('#said').textContent = '';
  }
  one('#wave').setAttribute('d', strokes(wave));
  one('#length').textContent = `${seconds.toFixed(2)} s`;
  const quality = one('#quality');
  quality.replaceChildren();
  row(quality, 'Length', `${seconds.toFixed(2)} s`);
  row(quality, 'Speech', `${facts.speech.toFixed(2)} s`);
  row(quality, 'Level', `${signed(facts.level, 0)} dB of full scale, peak ${signed(facts.peak, 0)} dB`);
  row(quality, 'Above the noise', `${facts.snr.toFixed(0)} dB`);
  row(quality, 'Bandwidth', `up to ${(facts.bandwidth / 1000).toFixed(1)} kHz`);
  row(quality, 'Channels', `${channels}${channels > 1 ? ', averaged' : ''}`);
  const audit = one('#audit');
  audit.replaceChildren();
  row(audit, 'File', clean(name));
  row(audit, 'SHA-256', sha256);
  row(audit, 'Judged', new Date().toISOString().slice(0, 16).replace('T', ' ') + ' UTC');
  row(audit, 'Model', `${model.about.name}, weights ${model.about.weights}${model.name ? `, from ${clean(model.name)}` : ''}`);
  row(audit, 'Versions', `wedefense_nb ${model.about.version}, onnxruntime-web ${settings.runtime_version}`);
  one('#card').hidden = !model.card;
  one('#card pre').textContent = model.card;
  URL.revokeObjectURL(address);
  address = URL.createObjectURL(asWav(wave));
  one('#sound').src = address;
  one('.seek').setAttribute('aria-valuemax', seconds.toFixed(2));
  one('#answer').hidden = false;
  follow();
  one('#verdict').focus({ preventScroll: true });
  one('#verdict').scrollIntoView({ block: 'start' });
}

const SVG = 'http://www.w3.org/2000/svg';

function draw(windows, seconds) {
  const llrs = windows.map((w) => w.llr);
  const most = llrs.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
  const limit = Math.max(3, Math.ceil(most));
  const middle = windows.map((w) => (w.start + w.end) / 2);
  const edges = [windows[0].start, ...middle.slice(1).map((x, i) => (x + middle[i]) / 2), windows.at(-1).end];
  const x = (t) => (1000 * t / seconds).toFixed(1);
  const steps = llrs.map((llr, i) => `V${(60 - 56 * llr / limit).toFixed(1)}H${x(edges[i + 1])}`).join('');
  document.querySelectorAll('.area').forEach((path) => path.setAttribute('d', `M${x(edges[0])} 60${steps}V60Z`));
  const grey = [];
  for (const w of windows.filter((one) => !one.counted)) {
    if (grey.length && w.start <= grey.at(-1).end) { grey.at(-1).end = w.end; } else { grey.push({ ...w }); }
  }
  one('#skipped').replaceChildren(...grey.map((w) => {
    const box = document.createElementNS(SVG, 'rect');
    box.setAttribute('class', 'skipped');
    box.setAttribute('x', x(w.start));
    box.setAttribute('width', x(w.end - w.start));
    box.setAttribute('height', 120);
    return box;
  }));
  one('#grey').hidden = grey.length === 0;
  document.querySelectorAll('.limit').forEach((place) => { place.textContent = limit; });
  const order = windows.map((_, i) => i).sort((i, j) => llrs[i] - llrs[j]);
  const [low, high] = [order[0], order.at(-1)];
  const fake = llrs.filter((llr) => llr < 0).length;
  const words = windows.length === 1 ? `LLR of the only window: ${signed(llrs[0])}.` :
    `LLR of ${windows.length} windows, ${fake} of them below zero. Lowest ${signed(llrs[low])} at ` +
    `${middle[low].toFixed(1)} s, highest ${signed(llrs[high])} at ${middle[high].toFixed(1)} s.`;
  one('#said').textContent = words;
  one('#windows').setAttribute('aria-label', words);
  one('#table').hidden = windows.length === 1;
  one('#table summary').textContent = `The windows as a table${windows.length > 100 ? ': the 100 lowest' : ''}`;
  const body = one('#table tbody');
  body.replaceChildren();
  for (const i of order.slice(0, 100).sort((a, b) => a - b)) {
    const w = windows[i];
    const place = `${w.start.toFixed(2)} to ${w.end.toFixed(2)} s`;
    const line = body.insertRow();
    line.insertCell().textContent = place + (w.counted ? '' : ', not counted');
    line.insertCell().textContent = signed(w.llr);
    line.cells[1].className = 'num';
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'play';
    button.setAttribute('aria-label', `Play from ${place}`);
    button.addEventListener('click', () => { go(w.start); start(); });
    line.insertCell().append(button);
  }
}

// Playing

const sound = one('#sound');
const seek = one('.seek');
function follow() {
  const at = Math.min(sound.currentTime, shown.seconds);
  one('.head').style.left = `${100 * at / shown.seconds}%`;
  seek.setAttribute('aria-valuenow', at.toFixed(2));
  seek.setAttribute('aria-valuetext', `${at.toFixed(2)} seconds`);
  if (!sound.paused) { requestAnimationFrame(follow); }
}
function go(to) { sound.currentTime = Math.max(0, Math.min(shown.seconds, to)); follow(); }
function start() { sound.play().catch(() => {}); }
seek.addEventListener('click', (event) => {
  const box = seek.getBoundingClientRect();
  go(shown.seconds * (event.clientX - box.left) / box.width);
  start();
});
seek.addEventListener('keydown', (event) => {
  const now = sound.currentTime;
  const step = shown.seconds > 20 ? 1 : 0.1;
  const moves = { ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
    PageDown: now - 10 * step, PageUp: now + 10 * step, Home: 0, End: shown.seconds };
  if (event.key in moves) { go(moves[event.key]); }
  else if (event.key === ' ' || event.key === 'Enter') { if (sound.paused) { start(); } else { sound.pause(); } }
  else { return; }
  event.preventDefault();
});
['play', 'seeked', 'timeupdate'].forEach((name) => sound.addEventListener(name, () => { if (shown) { follow(); } }));

// Ways in

function take(file) { if (file) { stopRecording(); judge(file.name, () => waveOf(file)); } }

one('#file').addEventListener('change', (event) => {
  take(event.target.files[0]);
  event.target.value = ''; // the same file may be chosen again
});
const drop = one('#drop');
for (const name of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle('over', name === 'dragover');
    if (name === 'drop') { take(event.dataTransfer.files[0]); }
  });
}

one('#examples').hidden = settings.examples.length === 0;
for (const [label, name] of settings.examples) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = label;
  button.addEventListener('click', () => judge(name, async () => {
    const reply = await fetch(`examples/${encodeURIComponent(name)}`);
    if (!reply.ok) { throw new Error(`is missing from this site (${reply.status})`); }
    return waveOf(await reply.blob());
  }));
  one('#examples').append(' ', button);
}

let taped = null; // what is being recorded

function stopRecording() {
  if (taped === null) { return null; }
  const done = taped;
  taped = null;
  clearInterval(done.clock);
  done.stream.getTracks().forEach((track) => track.stop());
  done.context.close();
  one('#record').textContent = 'Record with the microphone';
  one('#recording').textContent = '';
  return done;
}

async function startRecording() {
  tell('');
  if (!navigator.mediaDevices) {
    tell('Recording: a browser allows it on pages that came over https only.');
    return;
  }
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // they change the sound
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    tell(`Recording: the microphone cannot be used (${error.name}): allow it for this page, or choose a file.`);
    return;
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule('recorder.js');
  const source = context.createMediaStreamSource(stream);
  const node = new AudioWorkletNode(context, 'recorder', { numberOfInputs: 1, numberOfOutputs: 0 });
  const parts = [];
  let samples = 0;
  node.port.onmessage = ({ data }) => {
    parts.push(data);
    samples += data.length;
    if (samples > MOST_SECONDS * context.sampleRate) { endRecording(); }
  };
  source.connect(node);
  const clock = setInterval(() => {
    one('#recording').textContent = `${(samples / context.sampleRate).toFixed(0)} s`;
  }, 1000);
  taped = { stream, context, parts, clock, rate: context.sampleRate };
  one('#record').textContent = 'Stop, and judge it';
}

function endRecording() {
  const done = stopRecording();
  judge('Recording', async () => {
    const n = done.parts.reduce((sum, part) => sum + part.length, 0);
    if (n === 0) { throw new Error('nothing came from the microphone'); }
    const wave = new Float32Array(n);
    let at = 0;
    for (const part of done.parts) { wave.set(part, at); at += part.length; }
    return { wave, rate: done.rate, sha256: 'of no file', channels: 1 };
  });
}

one('#record').addEventListener('click', () => { if (taped) { endRecording(); } else { startRecording(); } });

one('#model').addEventListener('change', async (event) => {
  const [file] = event.target.files;
  if (!file) { return; }
  turn++;
  progress('', 0);
  dismiss();
  one('#answer').hidden = true;
  tell('');
  try {
    const bytes = await file.arrayBuffer();
    model = { bytes, about: detectorOf(new Uint8Array(bytes)), note: '', card: '', name: file.name };
    one('#using').textContent = `In use: ${model.about.name}, from ${clean(file.name)}.`;
  } catch (error) {
    tell(`${clean(file.name)}: ${error.message}.`);
  }
});

one('#note').textContent = settings.note;
['#file', '#record', '#model'].forEach((name) => { one(name).disabled = false; });
weighAgain();
