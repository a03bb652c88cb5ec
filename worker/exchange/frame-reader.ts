/** Cuts a byte stream into checked frames, each payload received where it belongs. Knows no socket. */
import { BraidError } from '../../core/errors.ts';
import { decodeHeader, HEADER_BYTES, type Header } from './frame.ts';

export interface FrameHandler {
  /** A header came whole. Returns where its payload goes, `header.length` bytes, or throws to refuse it. */
  begin(header: Header): Uint8Array;
  /** The checksum that the payload should have been sent with. */
  checksum(payload: Uint8Array): number;
  /** Its payload is in place and undamaged. Returns whether to read on; else `FrameReader` waits at a frame's border. */
  end(header: Header): boolean;
}

export class FrameReader {
  private readonly headerBytes = new Uint8Array(HEADER_BYTES);
  private readonly handler: FrameHandler;
  private target: Uint8Array = this.headerBytes;
  private filled = 0;
  /** null exactly while a header is being read. */
  private header: Header | null = null;
  private announced = 0;

  constructor(handler: FrameHandler) {
    this.handler = handler;
  }

  /** Where the next bytes of the stream go: never empty. */
  space(): Uint8Array {
    return this.target.subarray(this.filled);
  }

  /**
   * `n` bytes of `space()` have been filled.
   * @returns whether to go on reading; when false, no byte past the frame has been asked for
   * @throws BraidError PROTOCOL or STALE_GENERATION: nothing of the frame has been passed on as good
   */
  advance(n: number): boolean {
    this.filled += n;
    if (this.filled < this.target.length) return true;
    if (this.header === null) {
      const { header, checksum } = decodeHeader(this.headerBytes);
      this.target = this.handler.begin(header);
      this.filled = 0;
      this.header = header;
      this.announced = checksum;
      if (this.target.length > 0) return true;
    }
    const { header } = this;
    const found = this.handler.checksum(this.target);
    if (found !== this.announced) {
      throw new BraidError(
        'PROTOCOL',
        `a gradient frame is refused: the payload at offset ${header.offset} of bucket ${header.bucket} is damaged`,
        { details: { found, announced: this.announced } },
      );
    }
    this.target = this.headerBytes;
    this.filled = 0;
    this.header = null;
    return this.handler.end(header);
  }
}
