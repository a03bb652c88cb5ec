/**
 * Parquet files as the Hugging Face hub has data sets of images: a column `image`, struct {bytes, path}, and `label`.
 *
 * Where a page is not compressed, a sample's bytes lie in the file as they are; in a compressed page (about 1 MB, as pyarrow
 * writes them) they are one stretch of what it inflates to. hyparquet knows the format; this notes the places.
 */
import {
  type AsyncBuffer,
  type ColumnMetaData,
  type FileMetaData,
  type PageHeader,
  parquetMetadataAsync,
  parquetReadObjects,
  type SchemaTree,
} from 'hyparquet';
import { parquetHeader } from 'hyparquet/src/column.js';
import { decompressPage, readDataPage } from 'hyparquet/src/datapage.js';
import { readRleBitPackedHybrid } from 'hyparquet/src/encoding.js';
import { readPlain } from 'hyparquet/src/plain.js';
import { getMaxDefinitionLevel, getMaxRepetitionLevel, getSchemaPath } from 'hyparquet/src/schema.js';
import { compressors } from 'hyparquet-compressors';
import type { RangedFile } from './ranges.ts';
import { type Page, type Scanned, soundLabel } from './scan.ts';
import { invalidData } from './stored-file.ts';

const IMAGE = ['image', 'bytes'];
const LABEL = 'label';
const REMEDY =
  'Bring the file again, or write it with columns image {bytes, path} and label, as the Hugging Face hub does.';

/** Where an image is; null: the row has none. */
type Place = Pick<Scanned, 'bytes' | 'offset' | 'length' | 'page'> | null;

export async function* scanParquet(file: RangedFile): AsyncGenerator<Scanned> {
  const buffer: AsyncBuffer = {
    byteLength: file.size,
    slice: async (start, end = file.size) => new Uint8Array(await file.read(start, end - start)).buffer as ArrayBuffer,
  };
  const metadata = await sound(file, () => parquetMetadataAsync(buffer));
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows);
    const column = group.columns.find(({ meta_data: m }) => m?.path_in_schema.join() === IMAGE.join())?.meta_data;
    if (column === undefined) throw invalidData(file.file, 'no column image {bytes}', 'one, and label', REMEDY);
    const rows = await sound(file, () =>
      parquetReadObjects({ file: buffer, metadata, columns: [LABEL], rowStart, rowEnd, compressors }),
    );
    const places = await sound(file, () => placesIn(file, metadata, column));
    if (places.length !== rows.length) {
      throw invalidData(file.file, `${places.length} images for ${rows.length} labels`, 'one each', REMEDY);
    }
    for (const [i, place] of places.entries()) {
      const name = `${file.file}, row ${rowStart + i}`;
      const label = soundLabel(`${name}, label`, rows[i]![LABEL]?.toString());
      if (place === null) yield { name, ...NOTHING, label, damage: 'no bytes' };
      else yield { name, ...place, label, damage: null };
    }
    rowStart = rowEnd;
  }
}

const NOTHING = { bytes: new Uint8Array(0), offset: 0, length: 0, page: null };

/** Of every row of a column chunk. */
async function placesIn(file: RangedFile, metadata: FileMetaData, column: ColumnMetaData): Promise<Place[]> {
  const schemaPath = getSchemaPath(metadata.schema, IMAGE);
  if (getMaxRepetitionLevel(schemaPath) > 0) throw new Error('several images a row');
  const start = Number(column.dictionary_page_offset ?? column.data_page_offset);
  const chunk = await file.read(start, Number(column.total_compressed_size));
  const reader = { view: viewOf(chunk), offset: 0 };
  const places: Place[] = [];
  let dictionary: Place[] = [];
  while (places.length < Number(column.num_values)) {
    const header = parquetHeader(reader);
    const stored = chunk.subarray(reader.offset, reader.offset + header.compressed_page_size);
    const at = start + reader.offset;
    reader.offset += header.compressed_page_size;
    const v2 = header.data_page_header_v2;
    // Version 2 has its levels before what is compressed.
    const levelBytes = v2 === undefined ? 0 : v2.definition_levels_byte_length + v2.repetition_levels_byte_length;
    const codec = v2?.is_compressed === false ? 'UNCOMPRESSED' : column.codec;
    const size = Number(header.uncompressed_page_size) - levelBytes;
    const values = decompressPage(stored.subarray(levelBytes), size, codec, compressors);
    const placeOf = (bytes: Uint8Array): Place => {
      const within = bytes.byteOffset - values.byteOffset;
      if (codec === 'UNCOMPRESSED') {
        return { bytes, offset: at + levelBytes + within, length: bytes.length, page: null };
      }
      const page: Page = { codec, size, start: within };
      return { bytes, offset: at + levelBytes, length: stored.length - levelBytes, page };
    };
    if (header.dictionary_page_header !== undefined) {
      const count = header.dictionary_page_header.num_values;
      const images = readPlain({ view: viewOf(values), offset: 0 }, 'BYTE_ARRAY', count, undefined) as Uint8Array[];
      dictionary = images.map(placeOf);
      continue;
    }
    const { encoding, found, rows } = readValues(header, values, stored, schemaPath);
    let next = 0;
    for (const isThere of rows) {
      const image = isThere ? found[next++]! : null;
      if (image === null) places.push(null);
      else if (encoding.endsWith('_DICTIONARY')) places.push(dictionary[image as number]!);
      else places.push(placeOf(image as Uint8Array));
    }
  }
  return places;
}

/**
 * @param values the page, inflated; of version 2 without its levels
 * @param stored the page as it is in the file, where version 2 has its levels first
 * @returns those values that are there, or their places in the dictionary; and of each row whether its value is there
 */
function readValues(header: PageHeader, values: Uint8Array, stored: Uint8Array, schemaPath: SchemaTree[]) {
  const { data_page_header: v1, data_page_header_v2: v2 } = header;
  const present = getMaxDefinitionLevel(schemaPath);
  const decoder = { type: 'BYTE_ARRAY', element: schemaPath.at(-1)!.element, schemaPath } as Decoder;
  if (v1 !== undefined) {
    const { definitionLevels: levels = [], dataPage } = readDataPage(values, v1, decoder);
    const rows = Array.from({ length: v1.num_values }, (_, i) => levels.length === 0 || levels[i] === present);
    return { encoding: v1.encoding, found: dataPage, rows };
  }
  if (v2 === undefined) throw new Error(`a page of kind ${header.type}`);
  const levels = new Array<number>(v2.num_values).fill(0);
  if (present > 0) {
    const reader = { view: viewOf(stored), offset: v2.repetition_levels_byte_length };
    readRleBitPackedHybrid(reader, 32 - Math.clz32(present), levels, v2.definition_levels_byte_length);
  }
  const rows = levels.map((level) => level === present);
  // Without its levels it is like a page of version 1 whose values are all there: those of the schema's root.
  const bare = { encoding: v2.encoding, num_values: v2.num_values - v2.num_nulls } as Parameters<
    typeof readDataPage
  >[1];
  const { dataPage } = readDataPage(values, bare, { ...decoder, schemaPath: schemaPath.slice(0, 1) });
  return { encoding: v2.encoding, found: dataPage, rows };
}

type Decoder = Parameters<typeof readDataPage>[2];

async function sound<T>(file: RangedFile, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (cause) {
    if ((cause as Error).name === 'BraidError') throw cause;
    throw invalidData(file.file, (cause as Error).message, 'a parquet file of images', REMEDY, cause);
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
