# docker build -t hsakd_jax .                               CPU
# docker build -t hsakd_jax --build-arg JAX='jax[cuda13]' . CUDA 13, or jax[cuda12]
# docker run --rm -v "$PWD/runs:/hsakd/runs" hsakd_jax train --config=configs/digits.py --workdir=runs/digits
FROM python:3.13-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.13-slim
ARG JAX=jax
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$JAX" /wheels/*.whl && rm -r /wheels
WORKDIR /hsakd
ENTRYPOINT ["hsakd"]
CMD ["--help"]
