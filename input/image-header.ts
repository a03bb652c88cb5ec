/** What the first bytes of a JPEG or PNG say of it, without decoding. */

export interface ImageHeader {
  kind: 'jpeg' | 'png';
  height: number;
  width: number;
  /** 1: grey, 3: colour, CMYK included; transparency does not count. */
  channels: 1 | 3;
}

const PNG_SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const IHDR = 0x49484452;
const PNG_HEADER_BYTES = 26; // signature, chunk length and type, width, height, depth, colour type
const MAX_PIXELS = 1 << 27; // 400 MB of RGB for each thread that decodes: no photograph, whatever its header claims

/**
 * Reads the header of an image file.
 * @param bytes its beginning: any number of bytes
 * @returns null when the header goes on beyond `bytes`
 * @throws Error saying what was found when it is no JPEG or PNG that can be decoded
 */
export function readImageHeader(bytes: Uint8Array): ImageHeader | null {
  const header = headerOf(bytes);
  if (header !== null && header.height * header.width > MAX_PIXELS) {
    throw new Error(`${header.height}x${header.width} pixels, more than ${MAX_PIXELS}`);
  }
  return header;
}

function headerOf(bytes: Uint8Array): ImageHeader | null {
  if (bytes.length < 4) return null;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegHeader(bytes);
  if (PNG_SIGNATURE.every((byte, i) => i >= bytes.length || bytes[i] === byte)) return pngHeader(bytes);
  const start = Array.from(bytes.subarray(0, 4), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
  throw new Error(`a file that begins with ${start}`);
}

function pngHeader(bytes: Uint8Array): ImageHeader | null {
  if (bytes.length < PNG_HEADER_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(12) !== IHDR) throw new Error('a PNG whose first chunk is not IHDR');
  const colourType = bytes[25]!;
  if (![0, 2, 3, 4, 6].includes(colourType)) throw new Error(`a PNG of colour type ${colourType}`);
  return {
    kind: 'png',
    width: view.getUint32(16),
    height: view.getUint32(20),
    channels: colourType === 0 || colourType === 4 ? 1 : 3,
  };
}

/** Walks the markers to the frame header (SOFn, ITU-T T.81 B.2.2). */
function jpegHeader(bytes: Uint8Array): ImageHeader | null {
  let at = 2;
  while (at + 10 <= bytes.length) {
    if (bytes[at] !== 0xff) throw new Error(`a JPEG without a marker at byte ${at}`);
    const marker = bytes[at + 1]!;
    if (marker === 0xff) {
      at++; // fill byte
      continue;
    }
    if (marker === 0xd9 || marker === 0xda) throw new Error('a JPEG without a frame header');
    const length = (bytes[at + 2]! << 8) | bytes[at + 3]!;
    if (length < 2) throw new Error(`a JPEG segment of ${length} bytes at byte ${at}`);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
    if (!isFrame) {
      at += 2 + length;
      continue;
    }
    const [precision, components] = [bytes[at + 4]!, bytes[at + 9]!];
    // baseline, extended and progressive Huffman coding
    if (marker > 0xc2) throw new Error(`a JPEG of the rare kind SOF${marker - 0xc0}`);
    if (precision !== 8) throw new Error(`a JPEG of ${precision} bits a sample`);
    if (components !== 1 && components !== 3 && components !== 4) throw new Error(`a JPEG of ${components} components`);
    return {
      kind: 'jpeg',
      height: (bytes[at + 5]! << 8) | bytes[at + 6]!,
      width: (bytes[at + 7]! << 8) | bytes[at + 8]!,
      channels: components === 1 ? 1 : 3,
    };
  }
  return null;
}
