/** How `braid status` and `braid dashboard` reach a coordinator: as those that only look. */
import { createLog } from '../core/log.ts';
import { type Connection, connect } from '../proto/calls.ts';
import { coordinatorService } from '../proto/load.ts';
import type { CoordinatorService } from '../proto/messages.ts';
import { tlsOf, tokenOf } from './trust.ts';

/** @param values of TLS and TOKEN_FILE   @throws BraidError SETUP when what they name cannot be used */
export function lookAt(
  coordinator: string,
  values: Parameters<typeof tlsOf>[0] & Parameters<typeof tokenOf>[0],
): Connection<CoordinatorService> {
  const log = createLog({
    format: 'human',
    level: 'warn',
    write: (line) => process.stderr.write(line),
    now: () => new Date(),
  });
  const token = tokenOf(values);
  const peer = `the coordinator at ${coordinator}`;
  return connect(coordinatorService, coordinator, { peer, tls: tlsOf(values, log), secret: () => token });
}
