/** A file that is read by ranges, wherever it lies. */

export interface RangedFile {
  /** Path or URL, for messages. */
  readonly file: string;
  /** Bytes. */
  readonly size: number;
  /** offset + length must not pass `size`. */
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
}

const WINDOW_BYTES = 1 << 20; // of a file that is read here and there: headers of small members come many to a read

/** The last stretch of a file that was read: for one that is gone through from its beginning to its end. */
export class Window {
  private readonly stored: RangedFile;
  private readonly bytesAtOnce: number;
  private start = 0;
  private bytes: Uint8Array = new Uint8Array(0);

  constructor(stored: RangedFile, bytesAtOnce = WINDOW_BYTES) {
    this.stored = stored;
    this.bytesAtOnce = bytesAtOnce;
  }

  /** A view that stays as it is. offset + length must not pass the file's size. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    if (offset < this.start || offset + length > this.start + this.bytes.length) {
      const wanted = Math.min(Math.max(length, this.bytesAtOnce), this.stored.size - offset);
      this.bytes = await this.stored.read(offset, wanted);
      this.start = offset;
    }
    return this.bytes.subarray(offset - this.start, offset - this.start + length);
  }
}
