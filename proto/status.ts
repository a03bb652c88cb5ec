/** The one place where Braid's errors become gRPC statuses and come back as themselves. */
import { Metadata, type ServiceError, type StatusObject, status } from '@grpc/grpc-js';
import { asBraidError, BraidError, type ErrorCode } from '../core/errors.ts';
import { tlsFailure } from './tls-failure.ts';

/** How another gRPC client sees each code. */
const STATUS_OF: Record<ErrorCode, status> = {
  INVALID_RECIPE: status.INVALID_ARGUMENT,
  INVALID_DATA: status.FAILED_PRECONDITION,
  INVALID_CHECKPOINT: status.DATA_LOSS,
  SETUP: status.FAILED_PRECONDITION,
  RUN_FULL: status.RESOURCE_EXHAUSTED,
  CAPTURE: status.UNIMPLEMENTED,
  DEVICE: status.INTERNAL,
  OUT_OF_MEMORY: status.RESOURCE_EXHAUSTED,
  PROTOCOL: status.INVALID_ARGUMENT,
  UNAUTHORIZED: status.UNAUTHENTICATED,
  VERSION_MISMATCH: status.FAILED_PRECONDITION,
  STALE_GENERATION: status.FAILED_PRECONDITION,
  WORKER_LOST: status.UNAVAILABLE,
  NON_FINITE: status.OUT_OF_RANGE,
  REPLICAS_DIVERGED: status.ABORTED,
  CANCELLED: status.CANCELLED,
  INTERNAL: status.INTERNAL,
};

/** Trailer with the error as JSON. Binary (-bin), since messages may hold any character. */
const ERROR_KEY = 'braid-error-bin';
/** Characters of a message or remedy that travel: all trailers together must stay under HTTP/2's 16 KiB of headers. */
const MESSAGE_CHARACTERS = 2000;

/** Anything a handler threw, as the status that its client gets. */
export function toStatus(thrown: unknown): Partial<StatusObject> & { code: status; details: string } {
  const { code, message, remedy } = asBraidError(thrown);
  const carried = { code, message: message.slice(0, MESSAGE_CHARACTERS), remedy: remedy.slice(0, MESSAGE_CHARACTERS) };
  const metadata = new Metadata();
  metadata.set(ERROR_KEY, Buffer.from(JSON.stringify(carried)));
  return { code: STATUS_OF[code], details: carried.message, metadata };
}

/**
 * What a client's call failed with, as a BraidError: the server's own where it sent one.
 * @param signal the call's: when it has aborted, its reason is the cause that matters
 * @param peer names the server in errors that it could not send itself: "worker 1 (host a, pid 7)"
 */
export function fromStatus(thrown: unknown, peer: string, signal?: AbortSignal): BraidError {
  if (signal?.aborted) return asBraidError(signal.reason, 'CANCELLED');
  const error = thrown as ServiceError;
  const carried = carriedError(error);
  if (carried !== undefined) return carried;
  const cause = thrown;
  switch (error.code) {
    case status.DEADLINE_EXCEEDED:
      return new BraidError('WORKER_LOST', `${peer} gave no answer in time`, { details: { timeout: true }, cause });
    case status.UNAVAILABLE: {
      const reason = tlsFailure(error.details);
      if (reason !== undefined) {
        return new BraidError('UNAUTHORIZED', `${peer} and this process do not trust one another: ${reason.what}`, {
          remedy: reason.remedy,
          cause,
        });
      }
      return new BraidError('WORKER_LOST', `${peer} cannot be reached or has gone: ${whyUnreachable(error.details)}`, {
        cause,
      });
    }
    case status.CANCELLED:
      return new BraidError('WORKER_LOST', `${peer} cannot be reached or has gone: ${error.details}`, { cause });
    case status.UNIMPLEMENTED:
    case status.RESOURCE_EXHAUSTED:
      return new BraidError('PROTOCOL', `${peer} refused the call: ${error.details}`, { cause });
    default:
      return asBraidError(thrown);
  }
}

/** Why there is no connection: the system's own words, where gRPC has wrapped them. */
export function whyUnreachable(details: string): string {
  return /Last error: (?:Error: )?(.*?)\.? Resolution note/.exec(details)?.[1] ?? details;
}

function carriedError(error: Partial<ServiceError>): BraidError | undefined {
  const [sent] = error.metadata?.get(ERROR_KEY) ?? [];
  if (sent === undefined) return undefined;
  try {
    const { code, message, remedy } = JSON.parse(sent.toString());
    if (!Object.hasOwn(STATUS_OF, code)) return undefined;
    return new BraidError(code, String(message), { remedy: String(remedy), cause: error });
  } catch {
    return undefined; // not ours: what gRPC says of it is all there is
  }
}
