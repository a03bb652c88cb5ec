/** A client of S3-compatible storage. Keys come from the environment alone, as does what is null here. */
import { S3Client } from '@aws-sdk/client-s3';

export interface S3Place {
  endpoint: string | null;
  region: string | null;
  /** https://host/bucket in place of https://bucket.host; null: wherever an endpoint is given. */
  pathStyle: boolean | null;
}

const CONNECT_TIMEOUT_MS = 10_000;
const SILENCE_TIMEOUT_MS = 60_000; // of a connection on which nothing moves
const DEFAULT_REGION = 'us-east-1'; // what servers other than Amazon's take for granted

/** @param attempts how often one request is tried, unless AWS_MAX_ATTEMPTS says so */
export function s3Client(place: S3Place, attempts: number): S3Client {
  const { AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_MAX_ATTEMPTS } = process.env;
  const endpoint = place.endpoint ?? AWS_ENDPOINT_URL_S3 ?? AWS_ENDPOINT_URL;
  const region =
    place.region ?? AWS_REGION ?? AWS_DEFAULT_REGION ?? (endpoint === undefined ? undefined : DEFAULT_REGION);
  return new S3Client({
    ...(endpoint !== undefined && { endpoint }),
    ...(region !== undefined && { region }),
    forcePathStyle: place.pathStyle ?? endpoint !== undefined,
    ...(AWS_MAX_ATTEMPTS === undefined && { maxAttempts: attempts }),
    requestHandler: { connectionTimeout: CONNECT_TIMEOUT_MS, socketTimeout: SILENCE_TIMEOUT_MS },
  });
}

/** What the client threw, without the request that it came of: that one was signed. */
export function s3Said(thrown: unknown): string {
  const { name, message, code } = thrown as Error & { code?: string };
  return [name === 'Error' ? code : name, message].filter(Boolean).join(': ');
}
