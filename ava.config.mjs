export default {
  extensions: ['ts'],
  files: ['test/**/*.test.ts'],
  timeout: '10m',
  workerThreads: false,
  // Tests start many processes, which all compile the same modules.
  environmentVariables: { NODE_COMPILE_CACHE: new URL('.cache/node', import.meta.url).pathname },
};
