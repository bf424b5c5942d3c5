# `cssformer serve` on a CPU:
#     docker build -t cssformer .
#     docker run --rm -p 127.0.0.1:7860:7860 cssformer
#     docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/runs/mine:/model:ro" cssformer serve /model --host 0.0.0.0
FROM python:3.12-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The build without CUDA, before the package that would bring the other.
RUN pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install ".[web]" && rm -rf /source
RUN useradd --create-home cssformer
USER cssformer
WORKDIR /home/cssformer
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health')"]
ENTRYPOINT ["cssformer"]
CMD ["serve", "animals", "--host", "0.0.0.0"]
