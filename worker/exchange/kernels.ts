/** The exchange's arithmetic: kernels.wat over shared wasm memory. */
import { KERNELS_WASM_BASE64 } from './kernels.wasm.ts';

/** Addresses are bytes, `n` counts elements. */
export interface Kernels {
  /** to[i] = a[i] + b[i], f32. `to` may be `a` or `b`. */
  sum(to: number, a: number, b: number, n: number): void;
  /** The same, and what `sumSquares` says of it. */
  sumAndSquares(to: number, a: number, b: number, n: number): number;
  /** Sum of f32 a[i]^2 in f64: not finite exactly when an element is not. */
  sumSquares(a: number, n: number): number;
  /** f32 at `a` to the nearest bf16 at `to`, ties to even. */
  narrow(to: number, a: number, n: number): void;
  /** bf16 at `a` to f32 at `to`; `a` may be `to + 2 * n`. */
  widen(to: number, a: number, n: number): void;
  /** Mixes `blocks` of 256 bytes at `a` into the 128 bytes at `to`: what a checksum is made of. */
  lanes(to: number, a: number, blocks: number): void;
}

export function loadKernels(memory: WebAssembly.Memory): Kernels {
  const module = new WebAssembly.Module(Buffer.from(KERNELS_WASM_BASE64, 'base64'));
  return new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Kernels;
}
