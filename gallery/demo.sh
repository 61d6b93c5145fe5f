#!/usr/bin/env bash
# Learn to draw clothes, and judge the result: about six minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf demo
mezzotint train rectified-flow --data fashion --minutes 2.7 --out demo/clothes
mezzotint train classifier --data fashion --minutes 0.8 --out demo/judge
mezzotint sample demo/clothes --n 100 --guidance 1 --out demo/clothes.png
mezzotint evaluate demo/clothes --data fashion --classifier demo/judge --guidance 1 --n 1000 --out demo
