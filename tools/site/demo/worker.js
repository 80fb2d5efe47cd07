// Listens and judges beside the page, so that the page stays awake. It asks nobody for anything: the page gives it
// the runtime, the model and the wave.

import { RATE, SHORTEST, planWindows, weigh } from './judge.js';
import { clipped, listen, resampled } from './sound.js';
import * as ort from './ort.wasm.bundle.min.mjs';

let session = null;
let about = null;

async function load(message) {
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmBinary = message.runtime;
  about = message.about;
  session = await ort.InferenceSession.create(new Uint8Array(message.model), { executionProviders: ['wasm'] });
  postMessage({ kind: 'loaded' });
}

/** Score of a window, as `Deployed` asks for it. */
async function scoreOf(part) {
  const wave = new Float32Array(Math.max(part.length, about.shortest_input));
  wave.set(part);
  const found = await session.run({
    wave: new ort.Tensor('float32', wave, [1, wave.length]),
    lengths: new ort.Tensor('int64', BigInt64Array.of(BigInt(part.length)), [1]),
  });
  return found.score.data[0];
}

async function judge(message) {
  const tell = (done) => postMessage({ kind: 'listened', done });
  const wave = clipped(resampled(message.wave, message.rate, tell));
  const heard = listen(wave, tell);
  postMessage({ kind: 'heard', facts: heard.facts, wave });
  if (wave.length < SHORTEST * RATE) {
    postMessage({ kind: 'judged' });
    return;
  }
  const plan = planWindows(wave.length, Math.round(about.window * RATE));
  const rows = [];
  for (const [first, last] of plan) {
    const score = await scoreOf(wave.subarray(first, last));
    if (!Number.isFinite(score)) { throw new Error("the model's score of this recording is not finite"); }
    rows.push({ first, last, score, speech: heard.share(first, last) });
    postMessage({ kind: 'window', done: rows.length, of: plan.length });
  }
  postMessage({ kind: 'judged', ...weigh(rows, about) });
}

self.onmessage = async ({ data }) => {
  try {
    await (data.kind === 'load' ? load(data) : judge(data));
  } catch (error) {
    postMessage({ kind: 'failed', said: String(error.message || error) });
  }
};
postMessage({ kind: 'ready' });
