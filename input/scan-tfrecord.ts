/**
 * TFRecord files of tf.train.Example, as ImageNet's are made: image/encoded and image/class/label. A record is
 *
 *     u64 length   u32 masked CRC-32C of the length   data   u32 masked CRC-32C of the data
 */
import { Reader } from 'protobufjs';
import { maskedCrc32c } from './crc32c.ts';
import { type RangedFile, Window } from './ranges.ts';
import { SCAN_BYTES, type Scanned, soundLabel } from './scan.ts';
import { invalidData } from './stored-file.ts';

const HEADER_BYTES = 12;
const FOOTER_BYTES = 4;
const IMAGE = 'image/encoded';
const LABEL = 'image/class/label';
const REMEDY = 'Bring the file again, or make it anew.';

export async function* scanTfrecord(file: RangedFile): AsyncGenerator<Scanned> {
  const window = new Window(file, SCAN_BYTES);
  for (let at = 0, record = 0; at < file.size; record++) {
    const name = `${file.file}, record ${record}`;
    if (at + HEADER_BYTES > file.size) throw truncated(file, name, at);
    const header = viewOf(await window.read(at, HEADER_BYTES));
    if (header.getUint32(8, true) !== maskedCrc32c(bytesOf(header, 0, 8))) {
      throw invalidData(name, `a length at byte ${at} that its CRC-32C does not fit`, 'a TFRecord', REMEDY);
    }
    const length = Number(header.getBigUint64(0, true));
    if (at + HEADER_BYTES + length + FOOTER_BYTES > file.size) throw truncated(file, name, at);
    const data = await window.read(at + HEADER_BYTES, length + FOOTER_BYTES);
    const body = data.subarray(0, length);
    const sound = viewOf(data).getUint32(length, true) === maskedCrc32c(body);
    const { image, label } = readExample(name, body);
    yield {
      name,
      bytes: body.subarray(image.offset, image.offset + image.length),
      label,
      offset: at + HEADER_BYTES + image.offset,
      length: image.length,
      page: null,
      damage: sound ? null : 'a record that its CRC-32C does not fit',
    };
    at += HEADER_BYTES + length + FOOTER_BYTES;
  }
}

interface Example {
  /** In the record's data. */
  image: { offset: number; length: number };
  label: number;
}

function readExample(name: string, data: Uint8Array): Example {
  let image: Example['image'] | undefined;
  let label: unknown;
  try {
    // Example.features, Features.feature, and in each entry of that map its key and its Feature
    forEachField(new Reader(data), 1, (features) =>
      forEachField(features, 1, (entry) => {
        let key = '';
        const end = entry.len;
        while (entry.pos < end) {
          const tag = entry.uint32();
          if (tag >>> 3 === 1) key = entry.string();
          else if (tag >>> 3 === 2) {
            const feature = inner(entry);
            if (key === IMAGE) image = firstBytes(feature);
            if (key === LABEL) label = firstInteger(feature);
            entry.pos = feature.len;
          } else entry.skipType(tag & 7);
        }
      }),
    );
  } catch (cause) {
    throw invalidData(
      name,
      `no tf.train.Example (${(cause as Error).message})`,
      `one with ${IMAGE} and ${LABEL}`,
      REMEDY,
      cause,
    );
  }
  if (image === undefined)
    throw invalidData(name, `no ${IMAGE}`, `a tf.train.Example with ${IMAGE} and ${LABEL}`, REMEDY);
  return { image, label: soundLabel(`${name}, ${LABEL}`, label) };
}

/** BytesList is Feature's field 1, its values are field 1 of that. */
function firstBytes(feature: Reader): Example['image'] | undefined {
  let found: Example['image'] | undefined;
  forEachField(feature, 1, (list) =>
    forEachField(list, 1, (value) => {
      found ??= { offset: value.pos, length: value.len - value.pos };
    }),
  );
  return found;
}

/** Int64List is field 3; its values, field 1, are packed or one by one. */
function firstInteger(feature: Reader): number | undefined {
  let found: number | undefined;
  forEachField(feature, 3, (list) => {
    while (list.pos < list.len) {
      const tag = list.uint32();
      const packed = (tag & 7) === 2 ? inner(list) : list;
      if (packed.pos < packed.len) found ??= Number(packed.int64());
      list.pos = packed === list ? list.pos : packed.len;
    }
  });
  return found;
}

/** What is in each field of this number, all of them length-delimited. */
function forEachField(message: Reader, number: number, use: (field: Reader) => void): void {
  while (message.pos < message.len) {
    const tag = message.uint32();
    if (tag >>> 3 !== number) {
      message.skipType(tag & 7);
      continue;
    }
    const field = inner(message);
    use(field);
    message.pos = field.len;
  }
}

/** A reader of the length-delimited field that comes next: `pos` and `len` still count from the beginning of the data. */
function inner(message: Reader): Reader {
  const length = message.uint32();
  if (message.pos + length > message.len) throw new Error('a field that goes beyond its message');
  const field = new Reader(message.buf);
  field.pos = message.pos;
  field.len = message.pos + length;
  return field;
}

function truncated(file: RangedFile, name: string, at: number) {
  return invalidData(
    name,
    `its end at byte ${file.size}`,
    `a whole record from byte ${at} on (it is truncated)`,
    REMEDY,
  );
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function bytesOf(view: DataView, offset: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + offset, length);
}
