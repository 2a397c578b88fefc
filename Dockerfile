# One file, three images: the API, a plugin's worker, Flower. The API knows every plugin's schema and no model library.
#
#   docker build -t libs-service .                             API and Flower
#   docker build -t antifraud --build-arg PLUGIN=antifraud .   a worker, with what its model needs
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheels
WORKDIR /src
RUN pip install --no-cache-dir "build>=1.3,<2"
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY api api
COPY libs_service libs_service
COPY client client
RUN python -m build --wheel --outdir /wheels/framework client && python -m build --wheel --outdir /wheels/framework .
COPY plugins plugins
RUN for plugin in plugins/*/pyproject.toml; do \
        folder=$(dirname "$plugin") && python -m build --wheel --outdir "/wheels/$folder" "$folder" || exit 1; \
        if [ -f "$folder/no-deps.txt" ]; then cp "$folder/no-deps.txt" "/wheels/$folder"; fi; \
    done

FROM python:${PYTHON}-slim
# The name of a folder below plugins/; empty: every plugin's code without its libraries, enough for its schema.py.
ARG PLUGIN=""
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# lightgbm, like most libraries of models, needs OpenMP; the API's image does without.
RUN if [ -n "$PLUGIN" ]; then \
        apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*; \
    fi
# The framework has the tested versions. A plugin has them where they suit it, else what it asks for.
COPY constraints.txt /tmp/constraints.txt
RUN --mount=from=wheels,source=/wheels,target=/wheels \
    pip install --constraint /tmp/constraints.txt /wheels/framework/*.whl && \
    if [ -n "$PLUGIN" ]; then \
        { pip install --constraint /tmp/constraints.txt /wheels/framework/*.whl "/wheels/plugins/$PLUGIN"/*.whl || \
          pip install /wheels/framework/*.whl "/wheels/plugins/$PLUGIN"/*.whl; } && \
        for files in "/wheels/plugins/$PLUGIN"/no-deps.txt; do \
            if [ -f "$files" ]; then pip install --no-deps --requirement "$files" || exit 1; fi; \
        done; \
    else \
        pip install --no-deps /wheels/plugins/*/*.whl; \
    fi
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin services && \
    install --directory --owner=10001 --group=10001 --mode=700 /data
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Without an API key it answers no other machine: make one, or set SERVICES_ALLOW_UNAUTHENTICATED (docs/security.md).
CMD ["uvicorn", "api:app", "--host", "0.0.0.0", "--port", "8000", "--log-level", "warning", "--timeout-keep-alive", "75", \
     "--timeout-graceful-shutdown", "5"]
