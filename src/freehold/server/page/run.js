// What is known of one answer's run over the context: its blocks, and which of them each token read.

/** One answer. blockTokens: tokens of a block; null until the server has said so. */
export class Run {
  promptTokens = 0;
  promptRead = 0;
  cachedTokens = null; // known at the end
  generated = 0;
  ended = false;
  sparseLayers = null;
  seconds = 0; // from the first token to the last
  #reads = []; // for each token: Map(block -> reads)
  #messages = [];

  constructor(blockTokens) {
    this.blockTokens = blockTokens;
  }

  /** Tokens in the context: the prompt, as far as it is known, and the answer. */
  get length() {
    return this.promptTokens + this.generated;
  }

  /** How many blocks the context has. */
  get numBlocks() {
    return this.blockTokens ? Math.ceil(this.length / this.blockTokens) : 0;
  }

  /** The answer's `provenance`. */
  takeProvenance(provenance) {
    this.blockTokens = provenance.block_tokens;
    this.sparseLayers = provenance.sparse_layers;
    this.#reads = provenance.tokens.map(({ blocks }) => new Map(blocks));
    this.#messages = provenance.messages;
  }

  /** Whether it is known what each token read. */
  get hasReads() {
    return this.sparseLayers !== null && this.#reads.length > 0;
  }

  /** Block -> reads of one token; undefined for a token that nothing is known of. */
  readsOf(token) {
    return this.#reads[token];
  }

  /** The tokens that read a block. */
  readersOf(block) {
    const tokens = [];
    this.#reads.forEach((reads, token) => reads.has(block) && tokens.push(token));
    return tokens;
  }

  /** "cached", "read", "written" or "coming" (of a prompt that is still being read). */
  stateOf(block) {
    const last = Math.min((block + 1) * this.blockTokens, this.length);
    if (last > this.promptTokens) return "written";
    if (this.cachedTokens !== null && last <= this.cachedTokens) return "cached";
    return this.ended || this.generated > 0 || last <= this.promptRead ? "read" : "coming";
  }

  /** How many blocks are in each state. */
  counts() {
    const counts = { cached: 0, read: 0, written: 0, coming: 0 };
    for (let block = 0; block < this.numBlocks; block++) counts[this.stateOf(block)] += 1;
    return counts;
  }

  /** The messages in a block: numbers in the request, the number after the last for the answer itself. */
  messagesIn(block) {
    const [first, end] = [block * this.blockTokens, Math.min((block + 1) * this.blockTokens, this.length)];
    const found = this.#messages.filter((m) => m.first < end && m.end > first).map((m) => m.message);
    if (end > this.promptTokens) found.push(this.#messages.length);
    return found;
  }

  /** Message -> its part of the reads of one token, each block's shared among the messages in it; adds up to 1. */
  sharesOf(token) {
    const shares = new Map();
    let total = 0;
    for (const [block, reads] of this.#reads[token] ?? []) {
      const [first, end] = [block * this.blockTokens, Math.min((block + 1) * this.blockTokens, this.length)];
      const ranges = [...this.#messages, { message: this.#messages.length, first: this.promptTokens, end: this.length }];
      for (const range of ranges) {
        const shared = Math.min(range.end, end) - Math.max(range.first, first);
        if (shared <= 0) continue;
        const part = (reads * shared) / (end - first);
        shares.set(range.message, (shares.get(range.message) ?? 0) + part);
        total += part;
      }
    }
    for (const [message, part] of shares) shares.set(message, part / total);
    return shares;
  }
}
