// An S3 server for tests (npm's s3rver) that knows one account. It refuses other access keys; of a
// signature in a header it checks no more than that, and it lets anonymous readers in.
// node s3.js NODE_MODULES PORT FOLDER; keys: S3_ACCESS_KEY, S3_SECRET_KEY.
const [modules, port, directory] = process.argv.slice(2);
const S3rver = require(`${modules}/s3rver`);
const { DUMMY_ACCOUNT } = require(`${modules}/s3rver/lib/models/account`);
DUMMY_ACCOUNT.createKeyPair(process.env.S3_ACCESS_KEY, process.env.S3_SECRET_KEY);
DUMMY_ACCOUNT.revokeAccessKey('S3RVER');
new S3rver({ address: '127.0.0.1', port: Number(port), directory }).run();
