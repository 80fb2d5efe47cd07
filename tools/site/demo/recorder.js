// Sends what the microphone hears to the page, sample by sample: no codec in between.

class Recorder extends AudioWorkletProcessor {
  process([channels]) {
    if (channels.length) { this.port.postMessage(channels[0].slice()); }
    return true;
  }
}
registerProcessor('recorder', Recorder);
