/** Tar shards as WebDataset writes them: a sample is the neighbouring members whose names differ after the first dot alone. */

import type { RangedFile } from './ranges.ts';
import { Window } from './ranges.ts';
import { SCAN_BYTES, type Scanned, soundLabel } from './scan.ts';
import { invalidData } from './stored-file.ts';
import { tarMembers } from './tar.ts';

const IMAGES = ['jpg', 'jpeg', 'png'];
const REMEDY =
  'A sample is a .jpg, .jpeg or .png and a .cls with the number of its class, or a .json with it as "label".';

interface Parts {
  key: string;
  image: Pick<Scanned, 'bytes' | 'offset' | 'length'> | null;
  /** As it stands in the .cls or .json. */
  label: unknown;
}

export async function* scanTar(file: RangedFile): AsyncGenerator<Scanned> {
  const window = new Window(file, SCAN_BYTES);
  let parts = null as Parts | null;
  for await (const { name, folder, offset, size } of tarMembers(file, window)) {
    if (folder) continue;
    const [, key, suffix] = /^((?:.*\/)?[^/.]+)\.([^/]*)$/.exec(name) ?? [];
    if (key === undefined || suffix === undefined) continue; // hidden, or without a suffix
    if (parts !== null && parts.key !== key) yield whole(file, parts);
    if (parts?.key !== key) parts = { key, image: null, label: undefined };
    const kind = suffix.toLowerCase();
    if (IMAGES.includes(kind)) parts.image = { bytes: await window.read(offset, size), offset, length: size };
    if (kind === 'cls') parts.label = new TextDecoder().decode(await window.read(offset, size));
    if (kind === 'json') parts.label ??= labelIn(`${file.file}/${name}`, await window.read(offset, size));
  }
  if (parts !== null) yield whole(file, parts);
}

function whole({ file }: RangedFile, { key, image, label }: Parts): Scanned {
  const name = `${file}/${key}`;
  if (image === null) throw invalidData(name, 'no image', 'one beside its label', REMEDY);
  if (label === undefined) throw invalidData(name, 'no label', 'one beside its image', REMEDY);
  return { name, ...image, label: soundLabel(name, label), page: null, damage: null };
}

function labelIn(where: string, json: Uint8Array): unknown {
  try {
    const { label, cls } = JSON.parse(new TextDecoder().decode(json));
    return label ?? cls;
  } catch (cause) {
    throw invalidData(where, 'no JSON', 'an object with a label', REMEDY, cause);
  }
}
