/** A ustar file in memory, as `tar` and Python's tarfile read it. */

const BLOCK = 512;

/** @param members names of at most 100 ASCII characters, and their bytes. Nothing but them decides what comes out. */
export function tarOf(members: [name: string, bytes: Uint8Array][]): Uint8Array {
  const padding = (bytes: number) => Buffer.alloc(Math.ceil(bytes / BLOCK) * BLOCK - bytes);
  const parts = members.flatMap(([name, bytes]) => [headerOf(name, bytes.length), bytes, padding(bytes.length)]);
  return Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)]);
}

function headerOf(name: string, size: number): Uint8Array {
  const header = Buffer.alloc(BLOCK);
  const octal = (value: number, at: number, digits: number) =>
    header.write(value.toString(8).padStart(digits, '0'), at, 'latin1');
  header.write(name, 0, 'latin1');
  octal(0o644, 100, 7); // mode
  octal(0, 108, 7); // owner
  octal(0, 116, 7); // group
  octal(size, 124, 11);
  octal(0, 136, 11); // time
  header.write('        0', 148, 'latin1'); // the checksum's place, as spaces; a file
  header.write('ustar\0' + '00', 257, 'latin1');
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  );
  header[154] = 0;
  return header;
}
