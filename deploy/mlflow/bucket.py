"""Makes the bucket of MLflow's artifacts where it is absent.

The store is the one that MLflow is told of: MLFLOW_S3_ENDPOINT_URL, MLFLOW_ARTIFACTS_DESTINATION,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Leaves out access rules: only MLflow knows the keys.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit


def main() -> int:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
    store = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=store)
    try:
        if bucket in (one["Name"] for one in client.list_buckets()["Buckets"]):
            print(f"bucket {bucket}: there")
        else:
            client.create_bucket(Bucket=bucket)
            print(f"bucket {bucket}: made")
    except (BotoCoreError, ClientError) as error:
        print(
            f"bucket {bucket} at {store} could not be made: {error}; is the store up, and are "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY its own?",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
