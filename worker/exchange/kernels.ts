/** The exchange's arithmetic: kernels.wat over shared wasm memory. */
import { KERNELS_WASM_BASE64 } from './kernels.wasm.ts';

export interface Kernels {
  /** to[i] = a[i] + b[i]. Byte addresses of f32; `n` elements; `to` may be `a` or `b`. */
  sum(to: number, a: number, b: number, n: number): void;
  /** Sum of a[i]^2 in f64: not finite exactly when an element is not. */
  sumSquares(a: number, n: number): number;
  /** Mixes `blocks` of 128 bytes at `a` into the 128 bytes at `to`: what a checksum is made of. */
  lanes(to: number, a: number, blocks: number): void;
}

export function loadKernels(memory: WebAssembly.Memory): Kernels {
  const module = new WebAssembly.Module(Buffer.from(KERNELS_WASM_BASE64, 'base64'));
  return new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Kernels;
}
