#!/usr/bin/env node
// `braid`: sets this folder up where that is still to do, then runs cli/main.ts under the Node 24 that set-up brought.
// Only syntax that a Node far too old can parse, as in setup/setup.mjs.
const OLDEST_NODE = 20;

if (Number(process.versions.node.split('.')[0]) < OLDEST_NODE) {
  console.error(`braid: Node ${process.versions.node} is too old: Braid needs Node ${OLDEST_NODE} or later.`);
  console.error(
    '  Remedy: install a current Node (Debian: apt-get install nodejs; or with nvm: nvm install 24), then run this again.',
  );
  process.exitCode = 1;
} else if (process.argv[2] === 'doctor') {
  // Tells what is wrong with a machine on which set-up may not have gone through: it runs on any Node, and changes nothing.
  import('../setup/doctor.mjs').then((doctor) => doctor.main(process.argv.slice(3)));
} else {
  import('../setup/launch.mjs').then((launch) => launch.main(process.argv.slice(2)));
}
