/**
 * Checkpoints in S3-compatible storage, under s3://bucket/prefix/step-<n>/. Nothing can be renamed there, so a checkpoint is
 * what has a manifest: it is uploaded last and deleted first.
 *
 * An upload in parts that is cut short by kill -9 leaves parts that nobody sees and somebody pays for: a bucket's lifecycle
 * rule (AbortIncompleteMultipartUpload) removes them.
 */
import type { Readable } from 'node:stream';
import { DeleteObjectCommand, GetObjectCommand, ListObjectsV2Command, type S3Client } from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { BraidError } from '../core/errors.ts';
import { s3Client, s3Said } from '../input/s3-client.ts';
import { damaged, MANIFEST, stepOf } from './checkpoints-manifest.ts';
import type { CheckpointStore, Place, StoredCheckpoint } from './checkpoints-store.ts';

const PART_BYTES = 8 << 20; // the four that are under way take 32 MiB; 10,000 of them, S3's most, hold 80 GiB
const DEFAULT_ATTEMPTS = 3;

export class S3Store implements CheckpointStore {
  readonly where: string;
  private readonly bucket: string;
  private readonly prefix: string;
  private readonly client: S3Client;

  constructor(place: Extract<Place, { kind: 's3' }>, attempts = DEFAULT_ATTEMPTS) {
    const { host, pathname } = new URL(place.url);
    this.where = place.url.replace(/\/+$/, '');
    this.bucket = host;
    this.prefix = pathname.replace(/^\/+|\/+$/g, '');
    this.client = s3Client(place, attempts);
  }

  async list(): Promise<StoredCheckpoint[]> {
    return (await this.folders()).filter(({ files }) => MANIFEST in files);
  }

  async write(name: string, files: Iterable<[string, Uint8Array]>): Promise<void> {
    let writing = `${this.where}/${name}`;
    try {
      for (const folder of await this.folders()) {
        if (folder.name === name || !(MANIFEST in folder.files)) await this.removeFiles(folder);
      }
      for (const [file, bytes] of files) {
        writing = `${this.where}/${name}/${file}`;
        const params = { Bucket: this.bucket, Key: this.keyOf(name, file), Body: bytes };
        await new Upload({ client: this.client, params, partSize: PART_BYTES }).done();
      }
    } catch (thrown) {
      await this.remove(name).catch(() => {}); // the first error is the one to tell
      throw refusal(`cannot write the checkpoint ${writing}`, thrown);
    }
  }

  async read(name: string, file: string, limitBytes: number): Promise<Uint8Array> {
    const path = `${this.where}/${name}/${file}`;
    try {
      const command = new GetObjectCommand({ Bucket: this.bucket, Key: this.keyOf(name, file) });
      const { Body, ContentLength = 0 } = await this.client.send(command);
      if (ContentLength > limitBytes) {
        (Body as Readable).destroy();
        throw damaged(path, `${ContentLength} bytes, not more than ${limitBytes} are expected`);
      }
      return await Body!.transformToByteArray();
    } catch (thrown) {
      throw refusal(`cannot read ${path}`, thrown);
    }
  }

  async remove(name: string): Promise<void> {
    const folder = (await this.folders()).find((each) => each.name === name);
    if (folder !== undefined) await this.removeFiles(folder);
  }

  /** Of all checkpoints, and of what is left of those that were never finished; oldest first. */
  private async folders(): Promise<StoredCheckpoint[]> {
    const found = new Map<string, StoredCheckpoint>();
    let page: { NextContinuationToken?: string | undefined } = {};
    try {
      do {
        const listed = await this.client.send(
          new ListObjectsV2Command({
            Bucket: this.bucket,
            Prefix: `${this.prefix}/step-`,
            ContinuationToken: page.NextContinuationToken,
          }),
        );
        for (const { Key = '', Size = 0, LastModified = new Date(0) } of listed.Contents ?? []) {
          const [name = '', file = '', ...deeper] = Key.slice(this.prefix.length + 1).split('/');
          const step = stepOf(name);
          if (step === null || file === '' || deeper.length > 0) continue;
          const folder = found.get(name) ?? {
            name,
            step,
            path: `${this.where}/${name}`,
            files: {},
            writtenAt: LastModified,
          };
          folder.files[file] = Size;
          if (file === MANIFEST) folder.writtenAt = LastModified;
          found.set(name, folder);
        }
        page = listed;
      } while (page.NextContinuationToken !== undefined);
    } catch (thrown) {
      throw refusal(`cannot list ${this.where}`, thrown);
    }
    return [...found.values()].sort((a, b) => a.step - b.step);
  }

  private async removeFiles({ name, path, files }: StoredCheckpoint): Promise<void> {
    const manifestFirst = Object.keys(files).sort((a, b) => Number(b === MANIFEST) - Number(a === MANIFEST));
    for (const file of manifestFirst) {
      try {
        await this.client.send(new DeleteObjectCommand({ Bucket: this.bucket, Key: this.keyOf(name, file) }));
      } catch (thrown) {
        throw refusal(`cannot remove ${path}/${file}`, thrown);
      }
    }
  }

  private keyOf(name: string, file: string): string {
    return `${this.prefix}/${name}/${file}`;
  }
}

function refusal(what: string, thrown: unknown): BraidError {
  if (thrown instanceof BraidError) return thrown;
  const said = `${what}: ${s3Said(thrown)}`;
  if ((thrown as Error).name === 'NoSuchKey')
    return new BraidError('INVALID_CHECKPOINT', said, { remedy: 'Name a whole checkpoint.' });
  return new BraidError('SETUP', said, { remedy: remedyFor(thrown as Error) });
}

function remedyFor({ name, $metadata }: Error & { $metadata?: { httpStatusCode?: number } }): string {
  if (name === 'CredentialsProviderError')
    return 'Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where the coordinator runs.';
  if (name === 'NoSuchBucket') return 'Make the bucket, or name another one in checkpoint.store.';
  if ($metadata?.httpStatusCode === 403)
    return 'Check the keys in the environment, and that they may list, read, write and delete under that prefix.';
  return 'Check checkpoint.store, checkpoint.s3, AWS_REGION and the network; then go on with --resume.';
}
