/**
 * An image file of any size to the pixels that the network sees: as much of it decoded as the view needs, then resized
 * rows first, columns second, with a u8 in between, in WebAssembly (kernels.wat). To the bit what PyTorch gives for
 * uint8 on a CPU.
 */
import { decodePart, headerOf } from './decode.ts';
import { type Taps, tapsOf } from './filter.ts';
import { applyJitter } from './jitter.ts';
import { KERNELS_WASM_BASE64 } from './kernels.wasm.ts';
import type { Size, View } from './view.ts';

interface Kernels {
  horizontal(
    to: number,
    toStride: number,
    from: number,
    fromStride: number,
    rows: number,
    firsts: number,
    weights: number,
    groups: number,
    width: number,
    precision: number,
  ): void;
  vertical(
    to: number,
    bytes: number,
    from: number,
    fromStride: number,
    rows: number,
    firsts: number,
    weights: number,
    pairs: number,
    precision: number,
  ): void;
}

const CHANNELS = 3;
/** Taps that the kernels take at a time. */
const GROUP = 4;
const PAIR = 2;
/** What the kernels read and write beyond; before that, whole taps of weight 0. */
const SPARE_BYTES = 64;
const ALIGN_BYTES = 16;
const PAGE_BYTES = 64 << 10;
const MAX_PAGES = 1 << 16; // 4 GiB
/** A thread that has had a huge image does not keep the memory. */
const KEPT_BYTES = 128 << 20;

export class Resizer {
  private memory!: WebAssembly.Memory;
  private kernels!: Kernels;
  /** Where free memory begins. */
  private top = 0;

  constructor() {
    this.renew();
  }

  /**
   * @param viewOf what to see of an image of this size
   * @param scaledDecode whether a JPEG may be decoded smaller where the view shrinks it anyway
   * @param target receives u8[H, W, 3], the view's window
   * @throws Error saying what is wrong with the file
   */
  write(file: Uint8Array, viewOf: (image: Size) => View, scaledDecode: boolean, target: Uint8Array): void {
    const header = headerOf(file);
    const view = viewOf(header);
    const { height, width } = view.window;
    const shrink = scaledDecode && header.kind === 'jpeg' ? shrinkOf(view) : 1;
    const [columns, rows] = tapsOfView(view, shrink);

    this.top = 0;
    const wanted = {
      top: rows.from,
      left: columns.from,
      height: rows.to - rows.from,
      width: columns.to - columns.from,
    };
    let pixels = 0;
    const part = decodePart(file, header, { wanted, shrink, channels: CHANNELS }, (bytes) => {
      pixels = this.allocate(bytes + columns.count * CHANNELS);
      return new Uint8Array(this.memory.buffer, pixels, bytes);
    });
    const stride = part.width * CHANNELS;
    const from = pixels + (rows.from - part.top) * stride;
    const rowBytes = width * CHANNELS;
    const middle = this.allocate((wanted.height + rows.count) * rowBytes);
    const out = this.allocate(height * rowBytes);
    const across = this.put(columns, part.left, CHANNELS);
    const down = this.put(rows, rows.from, rowBytes);
    this.kernels.horizontal(
      middle,
      rowBytes,
      from,
      stride,
      wanted.height,
      across.firsts,
      across.weights,
      columns.count / GROUP,
      width,
      columns.precision,
    );
    this.kernels.vertical(
      out,
      rowBytes,
      middle,
      rowBytes,
      height,
      down.firsts,
      down.weights,
      rows.count / PAIR,
      rows.precision,
    );
    target.set(new Uint8Array(this.memory.buffer, out, height * rowBytes));
    applyJitter(target, view.jitter);
    if (this.memory.buffer.byteLength > KEPT_BYTES) this.renew();
  }

  private renew(): void {
    this.memory = new WebAssembly.Memory({ initial: 16, maximum: MAX_PAGES, shared: true });
    const module = new WebAssembly.Module(Buffer.from(KERNELS_WASM_BASE64, 'base64'));
    this.kernels = new WebAssembly.Instance(module, { env: { memory: this.memory } }).exports as unknown as Kernels;
  }

  /** @returns the address */
  private allocate(bytes: number): number {
    const address = this.top;
    this.top += Math.ceil((bytes + SPARE_BYTES) / ALIGN_BYTES) * ALIGN_BYTES;
    const missing = this.top - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE_BYTES));
    return address;
  }

  /** @param first the line that offsets are counted from, `stride` bytes a line */
  private put({ firsts, weights }: Taps, first: number, stride: number): { firsts: number; weights: number } {
    const addresses = { firsts: this.allocate(firsts.byteLength), weights: this.allocate(weights.byteLength) };
    const offsets = new Int32Array(this.memory.buffer, addresses.firsts, firsts.length);
    for (let i = 0; i < firsts.length; i++) offsets[i] = (firsts[i]! - first) * stride;
    new Int16Array(this.memory.buffer, addresses.weights, weights.length).set(weights);
    return addresses;
  }
}

/** The largest shrinking at which the box still is no smaller than what it is resized to. */
function shrinkOf({ box, resized }: View): number {
  const scale = Math.min(box.height / resized.height, box.width / resized.width);
  return [8, 4, 2].find((shrink) => scale >= shrink) ?? 1;
}

function tapsOfView({ box, resized, window, mirrored }: View, shrink: number): [columns: Taps, rows: Taps] {
  const columns = {
    start: box.left / shrink,
    length: box.width / shrink,
    resized: resized.width,
    first: window.left,
    outputs: window.width,
    mirrored,
  };
  const rows = {
    start: box.top / shrink,
    length: box.height / shrink,
    resized: resized.height,
    first: window.top,
    outputs: window.height,
    mirrored: false,
  };
  return [tapsOf(columns, GROUP), tapsOf(rows, PAIR)];
}
