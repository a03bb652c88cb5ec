/** A data set's files in S3-compatible storage, under s3://bucket/prefix. */
import { GetObjectCommand, ListObjectsV2Command, type S3Client } from '@aws-sdk/client-s3';
import { BraidError } from '../core/errors.ts';
import { s3Client, s3Said } from './s3-client.ts';
import type { Store, StoredObject } from './store.ts';
import { invalidData } from './stored-file.ts';
import { Turnstile } from './turnstile.ts';

const ATTEMPTS = 5;
const REQUESTS_AT_ONCE = 32; // below the 50 sockets that the client opens

export class S3ObjectStore implements Store {
  readonly where: string;
  private readonly bucket: string;
  /** Empty, or with a slash at its end. */
  private readonly prefix: string;
  private readonly client: S3Client;
  private readonly turns = new Turnstile(REQUESTS_AT_ONCE);

  constructor(where: string) {
    const { host, pathname } = new URL(where);
    this.where = where.replace(/\/+$/, '');
    this.bucket = host;
    this.prefix = pathname.replace(/^\/+|\/+$/g, '').replace(/(?<=.)$/, '/');
    this.client = s3Client({ endpoint: null, region: null, pathStyle: null }, ATTEMPTS);
  }

  async list(): Promise<StoredObject[]> {
    const found: StoredObject[] = [];
    let token: string | undefined;
    do {
      const page = await this.ask(this.where, () =>
        this.client.send(
          new ListObjectsV2Command({ Bucket: this.bucket, Prefix: this.prefix, ContinuationToken: token }),
        ),
      );
      for (const { Key = '', Size = 0, ETag = null } of page.Contents ?? []) {
        const name = Key.slice(this.prefix.length);
        if (name !== '' && !name.endsWith('/')) found.push({ name, size: Size, tag: ETag });
      }
      token = page.NextContinuationToken;
    } while (token !== undefined);
    return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async stat(names: string[]): Promise<StoredObject[]> {
    const known = new Map((await this.list()).map((object) => [object.name, object]));
    return names.map((name) => {
      const object = known.get(name);
      if (object !== undefined) return object;
      throw invalidData(`${this.where}/${name}`, 'no such object', 'a file of the data set', 'Check the address.');
    });
  }

  read(name: string, offset: number, length: number): Promise<Uint8Array> {
    if (length === 0) return Promise.resolve(new Uint8Array(0));
    return this.turns.pass(() =>
      this.ask(`${this.where}/${name}`, async () => {
        const Range = `bytes=${offset}-${offset + length - 1}`;
        const command = new GetObjectCommand({ Bucket: this.bucket, Key: `${this.prefix}${name}`, Range });
        const bytes = await (await this.client.send(command)).Body!.transformToByteArray();
        if (bytes.length !== length) throw new Error(`${bytes.length} bytes came, not ${length}`);
        return bytes;
      }),
    );
  }

  close(): void {
    this.client.destroy();
  }

  private async ask<T>(what: string, request: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await request();
      } catch (thrown) {
        // The client itself tries requests again, but not an answer that breaks off.
        const brokeOff = !('$fault' in (thrown as Error));
        if (brokeOff && attempt < ATTEMPTS) continue;
        throw new BraidError('INVALID_DATA', `${what}: found ${s3Said(thrown)}, expected a file of the data set`, {
          remedy: 'Check the address, the keys in the environment, AWS_REGION, AWS_ENDPOINT_URL and the network.',
        });
      }
    }
  }
}
