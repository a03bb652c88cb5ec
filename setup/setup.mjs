#!/usr/bin/env node
// `node setup/setup.mjs`: brings this folder to the state that Braid needs, or does nothing when it already is.
// Only syntax that a Node far too old can parse, so that such a Node is told so: everything else is imported after.
const OLDEST_NODE = 20;

if (Number(process.versions.node.split('.')[0]) < OLDEST_NODE) {
  console.error(`braid: Node ${process.versions.node} is too old: set-up needs Node ${OLDEST_NODE} or later.`);
  console.error(
    '  Remedy: install a current Node (Debian: apt-get install nodejs; or with nvm: nvm install 24), then run this again.',
  );
  process.exitCode = 1;
} else {
  import('./install.mjs').then((install) => install.setUpOrExplain());
}
