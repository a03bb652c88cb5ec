/** Part of a gradient to send, perhaps to several peers: its bytes and checksum are made once, when the first of them needs it. */
import type { GradientMemory } from './gradient-memory.ts';

export class Payload {
  private readonly memory: GradientMemory;
  private readonly at: number;
  private readonly element: number;
  private readonly n: number;
  private made: { bytes: Uint8Array; checksum: number } | null = null;

  /** The `n` f32 at address `at`, which are the gradient's or the sum's from `element` on. */
  constructor(memory: GradientMemory, at: number, element: number, n: number) {
    this.memory = memory;
    this.at = at;
    this.element = element;
    this.n = n;
  }

  make(): { bytes: Uint8Array; checksum: number } {
    if (this.made === null) {
      const bytes = this.memory.outgoing(this.at, this.element, this.n);
      this.made = { bytes, checksum: this.memory.checksum(bytes) };
    }
    return this.made;
  }
}
