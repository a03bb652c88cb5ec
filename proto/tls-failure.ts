/** What OpenSSL and Node say when two ends do not trust one another, for people. */

interface TlsFailure {
  what: string;
  remedy: string;
}

const FAILURES: [RegExp, TlsFailure][] = [
  [
    /alert certificate required/i,
    { what: 'it wants a certificate, and this process shows none', remedy: 'Start both ends with --tls.' },
  ],
  [
    /certificate has expired|certificate is not yet valid/i,
    { what: 'its certificate is not valid today', remedy: 'Renew it, and look at the clocks of both machines.' },
  ],
  [
    /does not match certificate's altnames/i,
    {
      what: 'its certificate is for another host',
      remedy: 'Make one that names the host as it is dialed: `braid certs --host <name>` for development.',
    },
  ],
  [
    /self-signed certificate|unable to (get|verify)|unsuitable certificate|invalid ca|certificate signature failure/i,
    {
      what: "its certificate is not of this process's ca.pem",
      remedy: 'Give both ends certificates of one CA, each in its --tls folder.',
    },
  ],
  [
    /wrong version number|packet length too long|unsupported protocol/i,
    { what: 'it does not speak TLS, and this process does', remedy: 'Start both ends with --tls, or none.' },
  ],
];

/** @param details of a connection that failed   @returns undefined when trust was not the reason */
export function tlsFailure(details: string): TlsFailure | undefined {
  const known = FAILURES.find(([pattern]) => pattern.test(details))?.[1];
  const altnames = /Hostname\/IP does not match certificate's altnames: ([^"]*?)(?= \(\d{4}-|\. Resolution|$)/.exec(
    details,
  );
  return known && altnames !== null ? { ...known, what: `${known.what}: ${altnames[1]}` } : known;
}
